//! Every key: those of LLaMA-Factory 0.9.3 (its own and those that it takes from transformers), and ours.
//!
//! The defaults are theirs. A key that is not here is an error; `mod.rs` names its neighbour.

use super::key::{Fate, Key, Kind};
use Kind::{Anything, Count, Flag, Names, Number, Table, Text, Word};

const MANY: i64 = i64::MAX;
const ANY: Kind = Number(0.0, f64::MAX);
const SHARE: Kind = Number(0.0, 1.0);
/// A mean that follows at all.
const BELOW_ONE: Kind = Number(0.0, 0.999_999);

const fn done(name: &'static str, kind: Kind, default: &'static str) -> Key {
    Key { name, kind, default, fate: Fate::Done }
}

const fn idle(name: &'static str, kind: Kind, default: &'static str, why: &'static str) -> Key {
    Key { name, kind, default, fate: Fate::Idle(why) }
}

const fn refused(name: &'static str, kind: Kind, default: &'static str, instead: &'static str) -> Key {
    Key { name, kind, default, fate: Fate::Refused(instead) }
}

const NO_CODE: &str = "no code of a model's folder is ever run";
const ONE_WAY: &str = "there is one way to compute it, which is chosen by the processor";
const ONE_PROCESS: &str = "one process trains, whose memory is planned before it starts";
const NO_FETCHING: &str = "nothing is fetched while training: `bantam pull` does that";
const RECOMPUTED: &str =
    "activations are recomputed, layer by layer, unless disable_gradient_checkpointing is true";
const PICTURES: &str = "only text is read";
const NO_CACHE_OF_DATA: &str = "data is prepared anew at every start";
const EXPORTS: &str = "it belongs to export: `bantam merge` and `bantam quantize` do that";
const SERVES: &str = "it belongs to serving: `bantam run`, `chat` and `serve` do that";
const PREFERENCE: &str = "it belongs to the stages rm, dpo, kto and ppo";
const GENERATES: &str = "it belongs to predicting, which no training does";
const DECIDED: &str = "it says how other programs use their devices and threads";
const NO_GALORE: &str = "train an adapter (finetuning_type: lora), which needs less memory still";
const NO_HUB: &str = "upload the folder yourself; this program sends nothing";
const FLOATS: &str = "sums, norms and losses are float32 in any case";
const BF16: &str = "use bf16: true; float16 is not trained in";

/// Where the model is, and how it is held.
const MODEL: &[Key] = &[
    done("model_name_or_path", Text, "null"),
    done("adapter_name_or_path", Names, "null"),
    done("quantization_method", Word(&["bnb", "gptq", "awq", "aqlm", "quanto", "eetq", "hqq"]), "bnb"),
    done("quantization_bit", Count(2, 8), "null"),
    done("quantization_type", Word(&["nf4", "fp4"]), "nf4"),
    done("double_quantization", Flag, "true"),
    done("train_from_scratch", Flag, "false"),
    idle("adapter_folder", Text, "null", "adapters are named with their whole path"),
    idle("cache_dir", Text, "null", NO_FETCHING),
    idle("use_fast_tokenizer", Flag, "true", "tokenizer.json is read, which is the fast one"),
    refused("resize_vocab", Flag, "false", "resize the model beforehand"),
    refused("split_special_tokens", Flag, "false", "leave it out: control tokens in texts are tokens"),
    refused("add_tokens", Names, "null", "add them to the model's files beforehand"),
    refused("add_special_tokens", Names, "null", "add them to the model's files beforehand"),
    idle("model_revision", Text, "main", NO_FETCHING),
    idle("low_cpu_mem_usage", Flag, "true", ONE_WAY),
    done("rope_scaling", Word(&["linear", "dynamic", "yarn", "llama3"]), "null"),
    idle("flash_attn", Word(&["auto", "disabled", "sdpa", "fa2"]), "auto", ONE_WAY),
    refused("shift_attn", Flag, "false", "lower cutoff_len, or leave it out: memory is planned"),
    refused("mixture_of_depths", Word(&["convert", "load"]), "null", "leave it out"),
    idle("use_unsloth", Flag, "false", ONE_WAY),
    idle("use_unsloth_gc", Flag, "false", RECOMPUTED),
    idle("enable_liger_kernel", Flag, "false", ONE_WAY),
    refused("moe_aux_loss_coef", ANY, "null", "leave it out: routers are trained by the loss alone"),
    done("disable_gradient_checkpointing", Flag, "false"),
    idle("use_reentrant_gc", Flag, "true", RECOMPUTED),
    idle("upcast_layernorm", Flag, "false", FLOATS),
    idle("upcast_lmhead_output", Flag, "false", FLOATS),
    idle("infer_backend", Word(&["huggingface", "vllm", "sglang"]), "huggingface", SERVES),
    idle("offload_folder", Text, "offload", "what does not fit is read from where it lies"),
    idle("use_cache", Flag, "true", SERVES),
    idle("use_kv_cache", Flag, "true", SERVES),
    idle("infer_dtype", Word(&["auto", "float16", "bfloat16", "float32"]), "auto", SERVES),
    idle("hf_hub_token", Text, "null", NO_FETCHING),
    idle("ms_hub_token", Text, "null", NO_FETCHING),
    idle("om_hub_token", Text, "null", NO_FETCHING),
    idle("print_param_status", Flag, "false", "`bantam inspect` prints them"),
    idle("trust_remote_code", Flag, "false", NO_CODE),
    refused("quantization_device_map", Word(&["auto"]), "null", "leave it out: layers are placed by plan"),
    idle("image_max_pixels", Count(1, MANY), "589824", PICTURES),
    idle("image_min_pixels", Count(1, MANY), "1024", PICTURES),
    idle("image_do_pan_and_scan", Flag, "false", PICTURES),
    idle("crop_to_patches", Flag, "false", PICTURES),
    idle("video_max_pixels", Count(1, MANY), "65536", PICTURES),
    idle("video_min_pixels", Count(1, MANY), "256", PICTURES),
    idle("video_fps", ANY, "2.0", PICTURES),
    idle("video_maxlen", Count(1, MANY), "128", PICTURES),
    idle("use_audio_in_video", Flag, "false", PICTURES),
    idle("audio_sampling_rate", Count(1, MANY), "16000", PICTURES),
    idle("export_dir", Text, "null", EXPORTS),
    idle("export_size", Count(1, MANY), "5", EXPORTS),
    idle("export_device", Word(&["cpu", "auto"]), "cpu", EXPORTS),
    idle("export_quantization_bit", Count(2, 8), "null", EXPORTS),
    idle("export_quantization_dataset", Text, "null", EXPORTS),
    idle("export_quantization_nsamples", Count(1, MANY), "128", EXPORTS),
    idle("export_quantization_maxlen", Count(1, MANY), "1024", EXPORTS),
    idle("export_legacy_format", Flag, "false", EXPORTS),
    idle("export_hub_model_id", Text, "null", EXPORTS),
    idle("vllm_maxlen", Count(1, MANY), "4096", SERVES),
    idle("vllm_gpu_util", SHARE, "0.7", SERVES),
    idle("vllm_enforce_eager", Flag, "false", SERVES),
    idle("vllm_max_lora_rank", Count(1, MANY), "32", SERVES),
    idle("vllm_config", Anything, "null", SERVES),
    idle("sglang_maxlen", Count(1, MANY), "4096", SERVES),
    idle("sglang_mem_fraction", SHARE, "0.7", SERVES),
    idle("sglang_tp_size", Count(-1, MANY), "-1", SERVES),
    idle("sglang_config", Anything, "null", SERVES),
    idle("sglang_lora_backend", Word(&["triton", "flashinfer"]), "triton", SERVES),
];

/// What is read.
const DATA: &[Key] = &[
    done("template", Text, "null"),
    done("dataset", Names, "null"),
    done("eval_dataset", Names, "null"),
    done("dataset_dir", Text, "data"),
    // Ours: one file that no dataset_info.json describes.
    done("dataset_path", Text, "null"),
    done("dataset_type", Word(&["alpaca", "sharegpt", "openai", "text", "tokenized"]), "openai"),
    // Ours: conversations whose template does not end them get an eos.
    done("append_eos", Flag, "false"),
    done("cutoff_len", Count(2, 1 << 24), "2048"),
    done("train_on_prompt", Flag, "false"),
    done("mask_history", Flag, "false"),
    done("mix_strategy", Word(&["concat", "interleave_under", "interleave_over"]), "concat"),
    done("interleave_probs", Names, "null"),
    done("preprocessing_batch_size", Count(1, MANY), "1000"),
    done("max_samples", Count(1, MANY), "null"),
    done("ignore_pad_token_for_loss", Flag, "true"),
    done("val_size", ANY, "0.0"),
    done("packing", Flag, "null"),
    done("neat_packing", Flag, "false"),
    done("tool_format", Word(&["default", "glm4", "llama3", "mistral", "qwen"]), "null"),
    done("default_system", Text, "null"),
    done("enable_thinking", Flag, "true"),
    idle("media_dir", Text, "null", PICTURES),
    refused("streaming", Flag, "false", "leave it out: files are read row by row in any case"),
    idle("buffer_size", Count(1, MANY), "16384", "it belongs to streaming"),
    idle("overwrite_cache", Flag, "false", NO_CACHE_OF_DATA),
    idle("preprocessing_num_workers", Count(1, MANY), "null", "the same rows come out of any number of them"),
    idle("eval_num_beams", Count(1, MANY), "null", GENERATES),
    refused("eval_on_each_dataset", Flag, "false", "run once for each"),
    done("tokenized_path", Text, "null"),
    idle("data_shared_file_system", Flag, "false", ONE_PROCESS),
];

/// What is trained of the model.
const METHOD: &[Key] = &[
    done("stage", Word(&["pt", "sft", "rm", "ppo", "dpo", "kto"]), "sft"),
    done("finetuning_type", Word(&["lora", "freeze", "full", "qlora"]), "lora"),
    done("freeze_trainable_layers", Count(-4096, 4096), "2"),
    done("freeze_trainable_modules", Names, "all"),
    done("freeze_extra_modules", Names, "null"),
    done("additional_target", Names, "null"),
    done("lora_alpha", Count(1, 1 << 20), "null"),
    done("lora_dropout", SHARE, "0.0"),
    done("lora_rank", Count(1, 1 << 16), "8"),
    done("lora_target", Names, "all"),
    // Ours, and PEFT's: raw tensors, as experts are.
    done("target_parameters", Names, "null"),
    done("loraplus_lr_ratio", ANY, "null"),
    idle(
        "loraplus_lr_embedding",
        ANY,
        "1e-6",
        "embeddings have no adapter here: additional_target trains them whole",
    ),
    done("use_rslora", Flag, "false"),
    done("use_dora", Flag, "false"),
    done("pissa_init", Flag, "false"),
    done("pissa_iter", Count(-1, 4096), "16"),
    done("pissa_convert", Flag, "false"),
    done("create_new_adapter", Flag, "false"),
    done("pure_bf16", Flag, "false"),
    done("use_muon", Flag, "false"),
    // Ours.
    done("device", Text, "auto"),
    done("ram_budget", Text, "null"),
    done("vram", Text, "null"),
    done("muon_variant", Word(&["keller-jordan", "moonlight"]), "moonlight"),
    done("adamw_learning_rate", ANY, "null"),
    done("embedding_lr_ratio", ANY, "1.0"),
    done("head_lr_ratio", ANY, "1.0"),
    done("compute_accuracy", Flag, "false"),
    done("disable_shuffling", Flag, "false"),
    done("early_stopping_steps", Count(1, MANY), "null"),
    done("plot_loss", Flag, "false"),
    done("include_effective_tokens_per_second", Flag, "false"),
    done("use_swanlab", Flag, "false"),
    done("swanlab_project", Text, "llamafactory"),
    done("swanlab_workspace", Text, "null"),
    done("swanlab_run_name", Text, "null"),
    // Where nobody says anything a folder is written, as by local: who asks for the cloud is refused.
    done("swanlab_mode", Word(&["cloud", "local"]), "cloud"),
    idle("swanlab_api_key", Text, "null", "nothing is sent: `swanlab sync` asks for the key"),
    done("swanlab_logdir", Text, "null"),
    refused("swanlab_lark_webhook_url", Text, "null", "leave it out: no chat is written to"),
    refused("swanlab_lark_secret", Text, "null", "leave it out: no chat is written to"),
    refused("use_llama_pro", Flag, "false", "use finetuning_type: freeze with freeze_trainable_layers"),
    refused("use_adam_mini", Flag, "false", "use optim: adamw_8bit"),
    idle("freeze_vision_tower", Flag, "true", PICTURES),
    idle("freeze_multi_modal_projector", Flag, "true", PICTURES),
    refused("freeze_language_model", Flag, "false", "leave it out: only the language model is here"),
    idle("pref_beta", ANY, "0.1", PREFERENCE),
    idle("pref_ftx", ANY, "0.0", PREFERENCE),
    idle("pref_loss", Word(&["sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo"]), "sigmoid", PREFERENCE),
    idle("dpo_label_smoothing", Number(0.0, 0.5), "0.0", PREFERENCE),
    idle("kto_chosen_weight", ANY, "1.0", PREFERENCE),
    idle("kto_rejected_weight", ANY, "1.0", PREFERENCE),
    idle("simpo_gamma", ANY, "0.5", PREFERENCE),
    idle("ld_alpha", ANY, "null", PREFERENCE),
    idle("ppo_buffer_size", Count(1, MANY), "1", PREFERENCE),
    idle("ppo_epochs", Count(1, MANY), "4", PREFERENCE),
    idle("ppo_score_norm", Flag, "false", PREFERENCE),
    idle("ppo_target", ANY, "6.0", PREFERENCE),
    idle("ppo_whiten_rewards", Flag, "false", PREFERENCE),
    idle("ref_model", Text, "null", PREFERENCE),
    idle("ref_model_adapters", Text, "null", PREFERENCE),
    idle("ref_model_quantization_bit", Count(4, 8), "null", PREFERENCE),
    idle("reward_model", Text, "null", PREFERENCE),
    idle("reward_model_adapters", Text, "null", PREFERENCE),
    idle("reward_model_quantization_bit", Count(4, 8), "null", PREFERENCE),
    idle("reward_model_type", Word(&["lora", "full", "api"]), "lora", PREFERENCE),
    refused("use_galore", Flag, "false", NO_GALORE),
    idle("galore_target", Names, "all", NO_GALORE),
    idle("galore_rank", Count(1, MANY), "16", NO_GALORE),
    idle("galore_update_interval", Count(1, MANY), "200", NO_GALORE),
    idle("galore_scale", ANY, "2.0", NO_GALORE),
    idle("galore_proj_type", Word(&["std", "reverse_std", "right", "left", "full"]), "std", NO_GALORE),
    idle("galore_layerwise", Flag, "false", NO_GALORE),
    refused("use_apollo", Flag, "false", NO_GALORE),
    idle("apollo_target", Names, "all", NO_GALORE),
    idle("apollo_rank", Count(1, MANY), "16", NO_GALORE),
    idle("apollo_update_interval", Count(1, MANY), "200", NO_GALORE),
    idle("apollo_scale", ANY, "32.0", NO_GALORE),
    idle("apollo_proj", Word(&["svd", "random"]), "random", NO_GALORE),
    idle("apollo_proj_type", Word(&["std", "right", "left"]), "std", NO_GALORE),
    idle("apollo_scale_type", Word(&["channel", "tensor"]), "channel", NO_GALORE),
    idle("apollo_layerwise", Flag, "false", NO_GALORE),
    idle("apollo_scale_front", Flag, "false", NO_GALORE),
    refused("use_badam", Flag, "false", NO_GALORE),
    idle("badam_mode", Word(&["layer", "ratio"]), "layer", NO_GALORE),
    idle("badam_start_block", Count(0, MANY), "null", NO_GALORE),
    idle("badam_switch_mode", Word(&["ascending", "descending", "random", "fixed"]), "ascending", NO_GALORE),
    idle("badam_switch_interval", Count(-1, MANY), "50", NO_GALORE),
    idle("badam_update_ratio", SHARE, "0.05", NO_GALORE),
    idle("badam_mask_mode", Word(&["adjacent", "scatter"]), "adjacent", NO_GALORE),
    idle("badam_verbose", Count(0, 2), "0", NO_GALORE),
];

const INTERVALS: Kind = Word(&["no", "steps", "epoch"]);
const SCHEDULES: Kind = Word(&[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "constant",
    "constant_with_warmup",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]);
const OPTIMIZERS: Kind = Word(&[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_hf",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw",
    "sgd",
]);

/// How it is trained.
const TRAINING: &[Key] = &[
    done("output_dir", Text, "null"),
    done("overwrite_output_dir", Flag, "false"),
    // Who gives a file to `train` means it: theirs is false.
    refused("do_train", Flag, "true", "leave it out; `bantam eval` measures a model without training it"),
    done("do_eval", Flag, "false"),
    done("eval_strategy", INTERVALS, "no"),
    done("evaluation_strategy", INTERVALS, "no"),
    done("per_device_train_batch_size", Count(1, 1 << 20), "8"),
    done("per_device_eval_batch_size", Count(1, 1 << 20), "8"),
    done("gradient_accumulation_steps", Count(1, 1 << 20), "1"),
    done("learning_rate", ANY, "5e-5"),
    done("weight_decay", ANY, "0.0"),
    done("adam_beta1", BELOW_ONE, "0.9"),
    done("adam_beta2", BELOW_ONE, "0.999"),
    done("adam_epsilon", ANY, "1e-8"),
    done("max_grad_norm", ANY, "1.0"),
    done("label_smoothing_factor", SHARE, "0.0"),
    done("neftune_noise_alpha", ANY, "null"),
    done("num_train_epochs", ANY, "3.0"),
    done("max_steps", Count(-1, MANY), "-1"),
    done("lr_scheduler_type", SCHEDULES, "linear"),
    done("lr_scheduler_kwargs", Table, "null"),
    done("warmup_ratio", SHARE, "0.0"),
    done("warmup_steps", Count(0, MANY), "0"),
    done("logging_strategy", INTERVALS, "steps"),
    done("logging_first_step", Flag, "false"),
    done("logging_steps", ANY, "500"),
    done("logging_dir", Text, "null"),
    done("save_strategy", INTERVALS, "steps"),
    done("save_steps", ANY, "500"),
    done("save_total_limit", Count(1, MANY), "null"),
    done("save_only_model", Flag, "false"),
    done("seed", Count(0, MANY), "42"),
    done("data_seed", Count(0, MANY), "null"),
    done("bf16", Flag, "false"),
    done("dataloader_drop_last", Flag, "false"),
    done("group_by_length", Flag, "false"),
    done("eval_steps", ANY, "null"),
    done("run_name", Text, "null"),
    done("optim", OPTIMIZERS, "adamw_torch"),
    done("report_to", Names, "null"),
    done("resume_from_checkpoint", Text, "null"),
    done("load_best_model_at_end", Flag, "false"),
    done("metric_for_best_model", Text, "null"),
    done("greater_is_better", Flag, "null"),
    done("eval_on_start", Flag, "false"),
    done("disable_tqdm", Flag, "null"),
    refused("do_predict", Flag, "false", "use `bantam run` for answers, `bantam eval` for perplexity"),
    refused(
        "predict_with_generate",
        Flag,
        "false",
        "use `bantam run` for answers, `bantam eval` for perplexity",
    ),
    refused("fp16", Flag, "false", BF16),
    refused("fp16_full_eval", Flag, "false", BF16),
    idle("fp16_opt_level", Text, "O1", BF16),
    idle("fp16_backend", Text, "auto", BF16),
    idle("half_precision_backend", Text, "auto", ONE_WAY),
    idle("bf16_full_eval", Flag, "false", FLOATS),
    idle("tf32", Flag, "null", ONE_WAY),
    refused("optim_args", Text, "null", "use the keys adam_beta1, adam_beta2, adam_epsilon, weight_decay"),
    refused("optim_target_modules", Anything, "null", "leave it out"),
    refused("adafactor", Flag, "false", "use optim: adamw_8bit"),
    refused("auto_find_batch_size", Flag, "false", "leave it out: memory is planned, `--dry-run` shows it"),
    refused("include_inputs_for_metrics", Flag, "false", "leave it out"),
    refused("save_safetensors", Flag, "true", "leave it out: other files can hold code"),
    refused("push_to_hub", Flag, "false", NO_HUB),
    idle("hub_model_id", Text, "null", NO_HUB),
    idle("hub_strategy", Text, "every_save", NO_HUB),
    idle("hub_token", Text, "null", NO_HUB),
    idle("hub_private_repo", Flag, "null", NO_HUB),
    idle("hub_always_push", Flag, "false", NO_HUB),
    idle("hub_revision", Text, "null", NO_HUB),
    idle("push_to_hub_model_id", Text, "null", NO_HUB),
    idle("push_to_hub_organization", Text, "null", NO_HUB),
    idle("push_to_hub_token", Text, "null", NO_HUB),
    idle("project", Text, "huggingface", NO_HUB),
    idle("trackio_space_id", Text, "trackio", NO_HUB),
    idle("gradient_checkpointing", Flag, "false", RECOMPUTED),
    idle("gradient_checkpointing_kwargs", Anything, "null", RECOMPUTED),
    idle("prediction_loss_only", Flag, "false", GENERATES),
    idle("per_gpu_train_batch_size", Count(1, MANY), "null", "use per_device_train_batch_size"),
    idle("per_gpu_eval_batch_size", Count(1, MANY), "null", "use per_device_eval_batch_size"),
    idle("eval_accumulation_steps", Count(1, MANY), "null", DECIDED),
    done("eval_delay", ANY, "0"),
    idle("torch_empty_cache_steps", Count(1, MANY), "null", DECIDED),
    idle("log_level", Text, "passive", DECIDED),
    idle("log_level_replica", Text, "warning", DECIDED),
    idle("log_on_each_node", Flag, "true", ONE_PROCESS),
    idle("logging_nan_inf_filter", Flag, "true", "a loss that is no number ends the run"),
    idle("save_on_each_node", Flag, "false", ONE_PROCESS),
    idle("restore_callback_states_from_checkpoint", Flag, "false", DECIDED),
    idle("no_cuda", Flag, "false", DECIDED),
    idle("use_cpu", Flag, "false", DECIDED),
    idle("use_mps_device", Flag, "false", DECIDED),
    idle("jit_mode_eval", Flag, "false", ONE_WAY),
    idle("local_rank", Count(-1, MANY), "-1", ONE_PROCESS),
    idle("ddp_backend", Text, "null", ONE_PROCESS),
    idle("ddp_timeout", Count(0, MANY), "1800", ONE_PROCESS),
    idle("ddp_find_unused_parameters", Flag, "null", ONE_PROCESS),
    idle("ddp_bucket_cap_mb", Count(1, MANY), "null", ONE_PROCESS),
    idle("ddp_broadcast_buffers", Flag, "null", ONE_PROCESS),
    idle("tpu_num_cores", Count(1, MANY), "null", DECIDED),
    idle("tpu_metrics_debug", Flag, "false", DECIDED),
    idle("debug", Text, "\"\"", DECIDED),
    idle("dataloader_num_workers", Count(0, MANY), "0", "batches are ready before they are needed"),
    idle("dataloader_prefetch_factor", Count(1, MANY), "null", "batches are ready before they are needed"),
    idle("dataloader_pin_memory", Flag, "true", DECIDED),
    idle("dataloader_persistent_workers", Flag, "false", DECIDED),
    idle("past_index", Count(-1, MANY), "-1", GENERATES),
    idle("remove_unused_columns", Flag, "true", "only named columns are read"),
    idle("label_names", Names, "null", "labels are called labels"),
    refused("ignore_data_skip", Flag, "false", "leave it out: a resumed run goes on where it stopped"),
    idle("fsdp", Anything, "null", ONE_PROCESS),
    idle("fsdp_min_num_params", Count(0, MANY), "0", ONE_PROCESS),
    idle("fsdp_config", Anything, "null", ONE_PROCESS),
    idle("fsdp_transformer_layer_cls_to_wrap", Text, "null", ONE_PROCESS),
    idle("accelerator_config", Anything, "null", ONE_PROCESS),
    idle("parallelism_config", Anything, "null", ONE_PROCESS),
    idle("deepspeed", Anything, "null", ONE_PROCESS),
    idle("length_column_name", Text, "length", "it belongs to group_by_length"),
    idle("skip_memory_metrics", Flag, "true", "memory is planned and shown"),
    idle("use_legacy_prediction_loop", Flag, "false", GENERATES),
    idle("include_for_metrics", Names, "null", GENERATES),
    idle("eval_do_concat_batches", Flag, "true", GENERATES),
    idle("mp_parameters", Text, "\"\"", ONE_PROCESS),
    idle("full_determinism", Flag, "false", "runs are the same bits in any case"),
    idle("torchdynamo", Text, "null", ONE_WAY),
    idle("torch_compile", Flag, "false", ONE_WAY),
    idle("torch_compile_backend", Text, "null", ONE_WAY),
    idle("torch_compile_mode", Text, "null", ONE_WAY),
    idle("include_tokens_per_second", Flag, "false", "tokens per second are always shown"),
    idle("include_num_input_tokens_seen", Text, "false", "tokens are always counted"),
    idle("batch_eval_metrics", Flag, "false", GENERATES),
    idle("use_liger_kernel", Flag, "false", ONE_WAY),
    idle("liger_kernel_config", Anything, "null", ONE_WAY),
    idle("eval_use_gather_object", Flag, "false", ONE_PROCESS),
    idle("average_tokens_across_devices", Flag, "true", ONE_PROCESS),
    idle("sortish_sampler", Flag, "false", GENERATES),
    idle("generation_max_length", Count(1, MANY), "null", GENERATES),
    idle("generation_num_beams", Count(1, MANY), "null", GENERATES),
    idle("generation_config", Anything, "null", GENERATES),
    idle("ray_scope", Text, "last", ONE_PROCESS),
    idle("ray_run_name", Text, "null", ONE_PROCESS),
    idle("ray_storage_path", Text, "./saves", ONE_PROCESS),
    idle("ray_storage_filesystem", Text, "null", ONE_PROCESS),
    idle("ray_num_workers", Count(1, MANY), "1", ONE_PROCESS),
    idle("resources_per_worker", Anything, "null", ONE_PROCESS),
    idle("placement_strategy", Text, "PACK", ONE_PROCESS),
    idle("ray_init_kwargs", Anything, "null", ONE_PROCESS),
    idle("do_sample", Flag, "true", GENERATES),
    idle("temperature", ANY, "0.95", GENERATES),
    idle("top_p", SHARE, "0.7", GENERATES),
    idle("top_k", Count(-1, MANY), "50", GENERATES),
    idle("num_beams", Count(1, MANY), "1", GENERATES),
    idle("max_length", Count(1, MANY), "1024", GENERATES),
    idle("max_new_tokens", Count(1, MANY), "1024", GENERATES),
    idle("repetition_penalty", ANY, "1.0", GENERATES),
    idle("length_penalty", Number(-1e9, 1e9), "1.0", GENERATES),
    idle("skip_special_tokens", Flag, "true", GENERATES),
];

/// All keys.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    [MODEL, DATA, METHOD, TRAINING].into_iter().flatten()
}

/// The key of a name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    keys().find(|key| key.name == name)
}

/// The known name that is nearest, if any is near.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let near = keys().map(|key| (distance(name, key.name), key.name)).min()?;
    (near.0 <= 2 + name.len() / 6).then_some(near.1)
}

/// How many letters must be changed, put in or taken out.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, letter) in from.chars().take(64).enumerate() {
        let mut before = row[0];
        row[0] = line + 1;
        for (column, other) in to.iter().enumerate() {
            let changed = before + usize::from(letter != *other);
            before = row[column + 1];
            row[column + 1] = changed.min(before + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_table_is_in_order() {
        let names: BTreeSet<_> = keys().map(|key| key.name).collect();
        assert_eq!(names.len(), keys().count(), "a key stands twice");
        keys().for_each(|key| drop(key.default_value()));
    }

    #[test]
    fn neighbours_are_found() {
        assert_eq!(nearest("lora_rnk"), Some("lora_rank"));
        assert_eq!(nearest("learning_rates"), Some("learning_rate"));
        assert_eq!(nearest("per_device_batch_size"), Some("per_device_eval_batch_size"));
        assert_eq!(nearest("qwertz"), None);
    }
}
