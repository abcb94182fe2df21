//! Names of an adapter's tensors, as PEFT spells them: with the adapter's own name in them or without, as older and
//! newer versions have it.

/// What a tensor of an adapter is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key {
    /// A part of a change of a module; `base_layer` stands in the module's name once for every change around it.
    Change(String, Side),
    /// A whole tensor of the model, by its name there, and whether it stands in a module that is changed: a weight is
    /// then the base's own.
    Whole(String, bool),
}

/// Which part of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// From inputs to the rank.
    Down,
    /// From the rank to outputs.
    Up,
    /// Added to those.
    Bias,
    /// The same as `Down` of a table: a column for every token.
    Table,
    /// From the rank to a table's width.
    FromTable,
    /// Lengths of the rows.
    Magnitude,
}

/// Before every name.
const PREFIX: &str = "base_model.model.";

/// How the parts of a change are spelled, and whether `.weight` or `.bias` comes at the end.
const SIDES: &[(&str, Option<&str>, Side)] = &[
    ("lora_A", Some("weight"), Side::Down),
    ("lora_B", Some("weight"), Side::Up),
    ("lora_B", Some("bias"), Side::Bias),
    ("lora_embedding_A", None, Side::Table),
    ("lora_embedding_B", None, Side::FromTable),
    ("lora_magnitude_vector", None, Side::Magnitude),
    ("lora_magnitude_vector", Some("weight"), Side::Magnitude),
];

/// What a name means; `None` where PEFT writes no such.
pub(crate) fn read(name: &str) -> Option<Key> {
    let name = name.strip_prefix(PREFIX)?;
    let parts: Vec<&str> = name.split('.').collect();
    if let Some(at) = parts.iter().position(|part| part.starts_with("lora_")) {
        let (kind, rest) = (parts[at], &parts[at + 1..]);
        let is_last = |last: Option<&str>| match (last, rest) {
            (None, []) => true,
            // The adapter's own name; `.weight` alone would be one, too.
            (None, [own]) => *own != "weight" && *own != "bias",
            (Some(last), [found]) | (Some(last), [_, found]) => *found == last,
            _ => false,
        };
        let side = SIDES.iter().find(|(spelled, last, _)| *spelled == kind && is_last(*last))?.2;
        return (at > 0).then(|| Key::Change(parts[..at].join("."), side));
    }
    let mut whole: Vec<&str> = Vec::with_capacity(parts.len());
    let mut of_base = false;
    let mut parts = parts.into_iter();
    while let Some(part) = parts.next() {
        match part {
            "modules_to_save" => {
                // The adapter's own name follows, but for the oldest versions.
                let next = parts.next()?;
                if matches!(next, "weight" | "bias") {
                    whole.push(next);
                }
            }
            "original_module" => return None,
            "base_layer" => of_base = true,
            _ => whole.push(part),
        }
    }
    Some(Key::Whole(whole.join("."), of_base))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_peft_is_read() {
        let change = |module: &str, side| Some(Key::Change(module.to_owned(), side));
        let whole = |name: &str, of_base| Some(Key::Whole(name.to_owned(), of_base));
        let q = "model.layers.0.self_attn.q_proj";
        for (name, expected) in [
            ("model.layers.0.self_attn.q_proj.lora_A.weight", change(q, Side::Down)),
            ("model.layers.0.self_attn.q_proj.lora_A.default.weight", change(q, Side::Down)),
            ("model.layers.0.self_attn.q_proj.lora_B.mine.weight", change(q, Side::Up)),
            ("model.layers.0.self_attn.q_proj.lora_B.bias", change(q, Side::Bias)),
            ("model.layers.0.self_attn.q_proj.lora_B.default.bias", change(q, Side::Bias)),
            ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", change(q, Side::Magnitude)),
            ("model.layers.0.self_attn.q_proj.lora_magnitude_vector.default", change(q, Side::Magnitude)),
            (
                "model.layers.0.self_attn.q_proj.lora_magnitude_vector.default.weight",
                change(q, Side::Magnitude),
            ),
            ("model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight", change(q, Side::Magnitude)),
            ("model.embed_tokens.lora_embedding_A", change("model.embed_tokens", Side::Table)),
            ("model.embed_tokens.lora_embedding_B.default", change("model.embed_tokens", Side::FromTable)),
            ("mlp.experts.base_layer.lora_A.weight", change("mlp.experts.base_layer", Side::Down)),
            ("lm_head.weight", whole("lm_head.weight", false)),
            ("lm_head.modules_to_save.weight", whole("lm_head.weight", false)),
            ("lm_head.modules_to_save.default.weight", whole("lm_head.weight", false)),
            ("model.embed_tokens.base_layer.weight", whole("model.embed_tokens.weight", true)),
            ("a.q_proj.base_layer.bias", whole("a.q_proj.bias", true)),
            ("lm_head.original_module.weight", None),
            ("a.lora_A", None),
            ("a.lora_A.a.b.weight", None),
            ("a.lora_ga.weight", None),
            ("lora_A.weight", None),
        ] {
            assert_eq!(read(&format!("{PREFIX}{name}")), expected, "{name}");
        }
        assert_eq!(read("model.layers.0.self_attn.q_proj.lora_A.weight"), None);
    }
}
