//! Token ids as the command line spells them, and whether a model knows them.

use std::str::FromStr;

use bantam_model::source::Source;

use crate::failure::{Failure, refused};

/// Ids separated by commas, spaces allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenIds(pub(crate) Vec<u32>);

impl FromStr for TokenIds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id = |part: &str| {
            let part = part.trim();
            let shown: String = part.chars().take(40).collect();
            part.parse().map_err(|_| format!("expected token ids such as 1,2,3, found {shown:?} among them"))
        };
        Ok(TokenIds(text.split(',').map(id).collect::<Result<_, _>>()?))
    }
}

/// Refuses ids that the model has no embedding for, before it is loaded.
pub(crate) fn check(source: &Source, ids: &[u32]) -> Result<(), Failure> {
    let vocab = source.spec.vocab;
    match ids.iter().find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(refused(format!(
            "token {id} is outside the vocabulary of {}: expected ids from 0 to {}; \
             use ids of this model's own tokenizer",
            source.folder().display(),
            vocab - 1
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_numbers_between_commas() {
        assert_eq!("1, 2,3".parse(), Ok(TokenIds(vec![1, 2, 3])));
        for wrong in ["", "1,,2", "1;2", "-1", "4294967296", "1,2,"] {
            assert!(wrong.parse::<TokenIds>().is_err(), "{wrong:?}");
        }
    }
}
