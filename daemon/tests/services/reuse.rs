//! A conversation whose beginning was read already says what it would say if all were read again, whatever the family
//! and however keys and values are stored; and whoever asks is told how much was there.

use bantam_daemon::settings::{KvName, PrecisionName, Settings};
use bantam_proto::v1;
use bantam_proto::v1::generation_service_client::GenerationServiceClient;
use tonic::Code;
use tonic::transport::Channel;

use super::{Served, fields, generate};
use crate::support::served::Reply;

/// Windows, soft caps, sinks, experts, biases, partial rotary: what could tell how a cache was filled.
const FAMILIES: [&str; 5] = ["gemma2", "gpt_oss-mxfp4", "mixtral", "gpt_neox", "qwen3"];

fn greedy(model: &str, ids: &[u32], prefix: Option<v1::PrefixCache>) -> v1::GenerateRequest {
    let options = v1::GenerationOptions {
        temperature: Some(0.0),
        ignore_eos: true,
        log_probabilities: true,
        prefix_cache: prefix,
        ..v1::GenerationOptions::default()
    };
    v1::GenerateRequest {
        model: model.to_owned(),
        input: Some(v1::generate_request::Input::PromptIds(v1::TokenIds { ids: ids.to_vec() })),
        max_new_tokens: Some(8),
        options: Some(options),
    }
}

/// Ids and the bits of their log-probabilities.
fn said(reply: &Reply) -> Vec<(u32, u32)> {
    reply.tokens.iter().map(|token| (token.id, token.log_probability.unwrap().to_bits())).collect()
}

/// Tokens that were there, as it is told before a reply and after it.
fn cached(reply: &Reply) -> u32 {
    let usage = reply.finished.usage.as_ref().unwrap();
    assert_eq!(reply.started.cached_tokens, usage.cached_tokens);
    usage.cached_tokens
}

/// Asks the same twice, with and without what was read before; ids of the reply, and how many tokens were there.
async fn both(client: &mut GenerationServiceClient<Channel>, model: &str, ids: &[u32]) -> (Vec<u32>, u32) {
    let warm = generate(client, greedy(model, ids, None)).await.unwrap();
    let off = v1::PrefixCache { off: true, ..v1::PrefixCache::default() };
    let cold = generate(client, greedy(model, ids, Some(off))).await.unwrap();
    assert_eq!(said(&warm), said(&cold), "{model}, {} tokens", ids.len());
    assert_eq!(cached(&cold), 0);
    (warm.ids(), cached(&warm))
}

fn noise(count: usize, seed: u64) -> Vec<u32> {
    let mut random = seed;
    let next = |_| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as u32 % 200
    };
    (0..count).map(next).collect()
}

/// Three turns of a conversation, then another one with the same beginning; how many tokens were met in all.
async fn conversations(served: &Served, model: &str) -> u64 {
    let mut client = served.generation().await;
    let mut met = 0;
    let mut history = noise(90, 1);
    for turn in 0..3 {
        let (reply, found) = both(&mut client, model, &history).await;
        // Of a reply all is read but its last token.
        let expected = if turn == 0 { 0 } else { history.len() - 20 - 1 };
        assert_eq!(found as usize, expected, "{model}, turn {turn}");
        met += u64::from(found);
        history.extend(reply);
        history.extend(noise(20, 7 + turn));
    }
    let other = [&history[..80], &noise(30, 5)].concat();
    let (_, found) = both(&mut client, model, &other).await;
    assert_eq!(found, 64, "{model}: the page that both have");
    // The first is as it was.
    let (_, again) = both(&mut client, model, &history).await;
    assert_eq!(again as usize, history.len() - 20 - 1, "{model}: nothing was lost");
    met + u64::from(found + again)
}

#[tokio::test]
async fn what_was_read_already_changes_no_token_of_any_family() {
    for (precision, kv) in [(PrecisionName::Exact, KvName::F32), (PrecisionName::Fast, KvName::Int8)] {
        let of = |settings| Settings { load_precision: precision, load_kv: kv, ..settings };
        let served = Served::with(of).await;
        let mut met = 0;
        for model in FAMILIES {
            met += conversations(&served, model).await;
        }
        assert_eq!(served.meters.cached_tokens.get(), met);
        served.end().await;
    }
}

#[tokio::test]
async fn a_request_says_what_it_shares_and_the_settings_whether_any_does() {
    let served = Served::start().await;
    let mut client = served.generation().await;
    let prompt = noise(100, 3);
    let of = |scope: &str| {
        let prefix = v1::PrefixCache { scope: scope.to_owned(), ..v1::PrefixCache::default() };
        greedy("qwen3", &prompt, Some(prefix))
    };
    for (scope, found) in [("a", 0), ("b", 0), ("a", 99), ("", 0), ("b", 99)] {
        assert_eq!(cached(&generate(&mut client, of(scope)).await.unwrap()), found, "{scope}");
    }
    let refused = generate(&mut client, of(&"x".repeat(257))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(fields(&refused).0, ["options.prefix_cache.scope"]);
    served.end().await;

    let served = Served::with(|settings| Settings { prefix_cache: false, ..settings }).await;
    let mut client = served.generation().await;
    for _ in 0..2 {
        assert_eq!(cached(&generate(&mut client, greedy("qwen3", &prompt, None)).await.unwrap()), 0);
    }
    served.end().await;
}
