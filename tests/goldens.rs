//! Logits and greedy continuations beside those of `transformers` in float32, for every family and processor level.

use bantam_core::Cpu;
use bantam_model::checkpoint::Checkpoint;
use bantam_model::embedding::{Pooling, embed};
use bantam_model::engine::{Chunk, Engine, StepError};
use bantam_model::sampler::argmax;
use bantam_tests::{MODELS, check_close, floats, ids, load, model_folder, options};

fn prompt_logits(engine: &mut Engine, prompt: &[u32]) -> Vec<f32> {
    let sequence = engine.open().expect("a free sequence");
    let mut logits = Vec::new();
    let all = |engine: &mut Engine, _, rows| {
        let rows: Vec<usize> = (0..rows).collect();
        logits.extend_from_slice(engine.logits(&rows));
        Ok::<(), StepError>(())
    };
    engine.prefill(sequence, prompt, all).expect("the prompt fits");
    engine.close(sequence);
    logits
}

/// Decodes greedily with the cache; returns the tokens and the logits of every step.
fn greedy(engine: &mut Engine, prompt: &[u32], count: usize) -> (Vec<u32>, Vec<f32>) {
    let sequence = engine.open().expect("a free sequence");
    engine.prefill::<StepError>(sequence, prompt, |_, _, _| Ok(())).expect("the prompt fits");
    let (mut tokens, mut all) = (Vec::new(), Vec::new());
    let mut row = engine.rows() - 1;
    for _ in 0..count {
        let logits = engine.logits(&[row]);
        all.extend_from_slice(logits);
        let token = argmax(logits).expect("finite logits");
        tokens.push(token);
        engine.step(&[Chunk { sequence, tokens: &[token] }]).expect("room for a token");
        row = 0;
    }
    engine.close(sequence);
    (tokens, all)
}

#[test]
fn hidden_states_and_embeddings_match_transformers() {
    // transformers takes a GPU for the other one.
    for model in MODELS.iter().filter(|model| **model != "gpt_oss-mxfp4") {
        let folder = model_folder(model);
        let open = |name: &str| Checkpoint::open(&folder.join(name)).expect("the golden is sound");
        let tokens = ids(&open("golden.safetensors"), "prompt0.input_ids");
        let wanted = floats(&open("hidden.safetensors"), "prompt0.last_hidden_state");
        let mut engine = load(&folder, options(), Cpu::detect(), 2);
        let width = engine.spec().hidden;
        let sequence = engine.open().expect("a free sequence");
        engine.step(&[Chunk { sequence, tokens: &tokens }]).expect("the prompt fits");
        let rows: Vec<usize> = (0..tokens.len()).collect();
        check_close(&format!("{model}, hidden states"), engine.hidden(&rows), &wanted);
        engine.close(sequence);
        let mean = |channel: usize| {
            let sum: f32 = wanted.iter().skip(channel).step_by(width).sum();
            sum / tokens.len() as f32
        };
        let mean: Vec<f32> = (0..width).map(mean).collect();
        let last = &wanted[wanted.len() - width..];
        for (pooling, wanted) in [(Pooling::Mean, &mean[..]), (Pooling::Last, last)] {
            let found = embed(&mut engine, &tokens, pooling).expect("the prompt fits");
            check_close(&format!("{model}, {pooling:?}"), &found, wanted);
        }
    }
}

#[test]
fn logits_and_greedy_match_transformers_on_every_processor_level() {
    for model in MODELS {
        let folder = model_folder(model);
        let golden = Checkpoint::open(&folder.join("golden.safetensors")).expect("golden.safetensors");
        for cpu in Cpu::detect().variants() {
            let mut engine = load(&folder, options(), cpu, 2);
            for prompt in 0..3 {
                let what = format!("{model} prompt {prompt} on {}", cpu.name());
                let tokens = ids(&golden, &format!("prompt{prompt}.input_ids"));
                let logits = prompt_logits(&mut engine, &tokens);
                check_close(&what, &logits, &floats(&golden, &format!("prompt{prompt}.logits")));
                let wanted = ids(&golden, &format!("prompt{prompt}.greedy"));
                let (found, steps) = greedy(&mut engine, &tokens, wanted.len());
                assert_eq!(found, wanted, "{what}: greedy continuation");
                if prompt == 0 {
                    check_close(&format!("{what}, steps"), &steps, &floats(&golden, "prompt0.step_logits"));
                }
            }
        }
    }
}
