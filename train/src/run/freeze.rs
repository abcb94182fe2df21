//! Which tensors of a model are trained where the others are frozen: as LLaMA-Factory 0.9.3 finds them, by parts of
//! names.

use std::collections::BTreeSet;

use bantam_model::foreign::clipped;
use bantam_model::source::Source;

use super::RunError;
use super::choices::Freeze;

/// The names of all that is trained.
pub(super) fn trained(source: &Source, freeze: &Freeze) -> Result<BTreeSet<String>, RunError> {
    let head = format!("{}.", source.spec.names.head);
    // A head that is the embedding has no tensor of its own where models are trained.
    let is_there = |name: &&str| !source.spec.tied || !name.starts_with(&head);
    let names: Vec<&str> = source.checkpoint.tensors().map(|tensor| tensor.name).filter(is_there).collect();
    let found = of_names(&names, source.spec.layers.len(), freeze)?;
    let none = || RunError::Frozen {
        key: "freeze_trainable_layers",
        found: freeze.layers.to_string(),
        known: "any but 0".to_owned(),
    };
    if found.is_empty() { Err(none()) } else { Ok(found) }
}

fn of_names(names: &[&str], layers: usize, freeze: &Freeze) -> Result<BTreeSet<String>, RunError> {
    let count = usize::try_from(freeze.layers.unsigned_abs()).unwrap_or(usize::MAX).min(layers);
    let numbers = if freeze.layers > 0 { layers - count..layers } else { 0..count };
    let (mut inside, mut outside) = (BTreeSet::new(), BTreeSet::new());
    for name in names {
        let layer = [".0.", ".1."].iter().find_map(|number| name.rsplit_once(number));
        inside.extend(layer.map(|(_, rest)| rest.split('.').next().unwrap_or(rest)));
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let mut parts = name.rsplit('.');
        if !name.split('.').any(is_number) {
            outside.extend(parts.nth(1));
        }
    }
    let refuse = |key: &'static str, found: &str, known: &BTreeSet<&str>| RunError::Frozen {
        key,
        found: clipped(found),
        known: known.iter().copied().collect::<Vec<_>>().join(", "),
    };
    let mut wanted = Vec::new();
    for module in &freeze.modules {
        let is_all = module == "all";
        if !is_all && !inside.contains(module.as_str()) {
            return Err(refuse("freeze_trainable_modules", module, &inside));
        }
        wanted
            .extend(numbers.clone().map(|number| format!(".{number}.{}", if is_all { "" } else { module })));
    }
    for module in &freeze.extra {
        if !outside.contains(module.as_str()) {
            return Err(refuse("freeze_extra_modules", module, &outside));
        }
        wanted.push(module.clone());
    }
    let is_trained = |name: &&&str| wanted.iter().any(|part| name.contains(part.as_str()));
    Ok(names.iter().filter(is_trained).map(|name| (*name).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[&str] = &[
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.2.self_attn.q_proj.weight",
        "model.layers.2.mlp.up_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ];

    fn found(layers: i64, modules: &str, extra: &str) -> String {
        let names = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let freeze = Freeze { layers, modules: names(modules), extra: names(extra) };
        match of_names(NAMES, 3, &freeze) {
            Ok(names) => {
                let places = names.iter().filter_map(|name| NAMES.iter().position(|known| known == name));
                let mut places: Vec<usize> = places.collect();
                places.sort_unstable();
                format!("{places:?}")
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn layers_and_modules_are_found_by_parts_of_names() {
        assert_eq!(found(2, "all", ""), "[3, 4, 5, 6]");
        assert_eq!(found(-1, "all", ""), "[1, 2]");
        assert_eq!(found(0, "all", ""), "[]");
        assert_eq!(found(100, "mlp", ""), "[2, 4, 6]");
        assert_eq!(found(1, "self_attn mlp", "embed_tokens norm"), "[0, 5, 6, 7]");
        assert!(found(1, "attn", "").contains("mlp, self_attn"));
        assert!(found(1, "all", "head").contains("embed_tokens, lm_head, norm"));
    }
}
