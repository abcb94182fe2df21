//! Keys that cannot stand together, and keys that nothing goes without.

use super::Chosen;

/// All that is wrong, each with its place.
pub(super) fn complaints(chosen: &Chosen) -> Vec<String> {
    let mut found = Vec::new();
    let mut say = |is_wrong: bool, key: &str, words: &str| {
        if is_wrong {
            found.push(format!("{}: {words}", chosen.place(key)));
        }
    };
    needed(chosen, &mut say);
    data(chosen, &mut say);
    method(chosen, &mut say);
    found
}

type Say<'a> = &'a mut dyn FnMut(bool, &str, &str);

fn needed(chosen: &Chosen, say: Say<'_>) {
    say(
        !chosen.is_given("model_name_or_path"),
        "model_name_or_path",
        "expected model_name_or_path, found none; name the model's folder",
    );
    let has_file = chosen.is_given("dataset_path");
    let is_kept = chosen.is_given("tokenized_path");
    say(
        !chosen.is_given("dataset") && !has_file && !is_kept,
        "dataset",
        "expected dataset, found none; give names of dataset_info.json",
    );
    say(
        chosen.is_given("dataset") && has_file,
        "dataset_path",
        "dataset and dataset_path cannot stand together; leave one out",
    );
    let stage = chosen.text("stage").unwrap_or_default();
    say(
        !matches!(stage.as_str(), "pt" | "sft"),
        "stage",
        &format!("expected the stage pt or sft, found {stage}, which is not here yet"),
    );
}

fn data(chosen: &Chosen, say: Say<'_>) {
    let is_sft = chosen.text("stage").as_deref() == Some("sft");
    for key in ["neat_packing", "train_on_prompt", "mask_history"] {
        say(chosen.is_set(key) && !is_sft, key, &format!("{key} is for the stage sft; leave it out"));
    }
    say(
        chosen.is_set("mask_history") && chosen.is_set("train_on_prompt"),
        "mask_history",
        "mask_history and train_on_prompt cannot stand together; leave one out",
    );
    let val_size = chosen.number("val_size").unwrap_or(0.0);
    say(
        val_size > 0.0 && chosen.is_given("eval_dataset"),
        "val_size",
        "val_size and eval_dataset cannot stand together; leave one out",
    );
    say(
        val_size > 1.0 && val_size.fract() != 0.0,
        "val_size",
        "expected a share below 1 or a whole number of rows for val_size",
    );
    say(
        chosen.is_set("do_eval") && val_size <= 0.0 && !chosen.is_given("eval_dataset"),
        "do_eval",
        "do_eval needs data; give val_size or eval_dataset",
    );
    let is_measured =
        ["eval_strategy", "evaluation_strategy"].iter().any(|key| chosen.text(key).as_deref() != Some("no"));
    say(
        is_measured && val_size <= 0.0 && !chosen.is_given("eval_dataset"),
        "eval_strategy",
        "eval_strategy needs data; give val_size or eval_dataset",
    );
    let mix = chosen.text("mix_strategy").unwrap_or_default();
    say(
        chosen.is_given("interleave_probs") && mix == "concat",
        "interleave_probs",
        "interleave_probs needs mix_strategy: interleave_under or interleave_over",
    );
    let cutoff = chosen.count("cutoff_len").unwrap_or(0);
    let is_packed = chosen.is_set("packing") || chosen.is_set("neat_packing");
    say(is_packed && cutoff < 3, "cutoff_len", "expected at least 3 for cutoff_len of packed rows");
}

fn method(chosen: &Chosen, say: Say<'_>) {
    let kind = chosen.text("finetuning_type").unwrap_or_default();
    let has_adapter = matches!(kind.as_str(), "lora" | "qlora");
    for key in ["use_rslora", "use_dora", "pissa_init"] {
        say(
            chosen.is_set(key) && !has_adapter,
            key,
            &format!("{key} is for finetuning_type: lora; leave it out"),
        );
    }
    for key in ["loraplus_lr_ratio", "adapter_name_or_path", "quantization_bit"] {
        say(
            chosen.is_given(key) && !has_adapter,
            key,
            &format!("{key} is for finetuning_type: lora; leave it out"),
        );
    }
    let is_quantized = chosen.is_given("quantization_bit") || kind == "qlora";
    say(
        is_quantized && chosen.is_set("pissa_init"),
        "pissa_init",
        "pissa_init needs a base that is not quantized; leave one of both out",
    );
    say(
        is_quantized && chosen.is_set("create_new_adapter"),
        "create_new_adapter",
        "create_new_adapter needs a base that is not quantized; merge the adapter first (`bantam merge`)",
    );
    let bits = chosen.count("quantization_bit");
    let method = chosen.text("quantization_method").unwrap_or_default();
    say(
        bits.is_some() && (method != "bnb" || !matches!(bits, Some(4 | 8))),
        "quantization_bit",
        "expected 4 or 8 bits of the method bnb; others make a model beforehand (`bantam quantize`)",
    );
    let adapters = chosen.names("adapter_name_or_path").map_or(0, |names| names.len());
    say(
        is_quantized && adapters > 1,
        "adapter_name_or_path",
        "a quantized base takes one adapter; merge them first (`bantam merge`)",
    );
    say(
        chosen.is_set("pure_bf16") && chosen.is_set("bf16"),
        "pure_bf16",
        "bf16 and pure_bf16 cannot stand together; leave one out",
    );
}
