//! Random requests in random order, some damaged, some abandoned: the same seed is the same attack. Whatever comes of
//! them, nothing panics, the daemon serves, and in the end it holds nothing.

use std::time::Duration;

use bantam_daemon::settings::Settings;
use tonic::Code;
use tonic::transport::Channel;

use super::numbers::{Protocol, sound};
use super::raw::{call, field};
use super::{emptied, is_serving, panics};
use crate::support::served::Served;

/// Numbers that look random and are the same every time.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }
}

/// A sound request, or what is left of one.
fn message(protocol: &Protocol, path: &str, random: &mut Random) -> Vec<u8> {
    let mut bytes = sound(path);
    match random.below(6) {
        0 | 1 => {}
        2 => {
            let method = protocol.methods.iter().find(|method| method.path == path).unwrap();
            let numbers = protocol.numbers(method);
            if !numbers.is_empty() {
                let values = numbers[random.below(numbers.len())].values();
                bytes.extend(&values[random.below(values.len())].1);
            }
        }
        3 => bytes.truncate(random.below(bytes.len() + 1)),
        4 => {
            for _ in 0..1 + random.below(4) {
                if !bytes.is_empty() {
                    let at = random.below(bytes.len());
                    bytes[at] = random.below(256) as u8;
                }
            }
        }
        _ => {
            let junk: Vec<u8> = (0..random.below(64)).map(|_| random.below(256) as u8).collect();
            bytes.extend(field(1 + random.below(30) as u32, random.below(6) as u8, &junk));
        }
    }
    bytes
}

async fn attack(channel: Channel, seed: u64, steps: usize) {
    let (protocol, mut random) = (Protocol::read(), Random::new(seed));
    for step in 0..steps {
        let path = &protocol.methods[random.below(protocol.methods.len())].path;
        let message = message(&protocol, path, &mut random);
        // Some go away after a few answers, some at once, some have no time.
        let most = [1, 1, 2, 400][random.below(4)];
        let timeout =
            [None, None, None, Some(Duration::from_millis(1 + random.below(20) as u64))][random.below(4)];
        // A watcher would wait for changes for ever.
        let most = if path.ends_with("WatchResidency") { 1 } else { most };
        let answer = call(channel.clone(), path, message, most, timeout).await;
        let code = answer.as_ref().map_or_else(tonic::Status::code, |_| Code::Ok);
        let is_ours = [Code::Internal, Code::Unknown, Code::DataLoss, Code::Unauthenticated].contains(&code);
        assert!(!is_ours, "seed {seed}, step {step}, {path}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_requests_leave_nothing_behind() {
    let before = panics();
    let served = Served::with(|settings| Settings { slots: 2, context: 32, ..settings }).await;
    let mut attackers = Vec::new();
    for seed in 1..=8 {
        attackers.push(tokio::spawn(attack(served.channel().await, seed, 120)));
    }
    for attacker in attackers {
        attacker.await.unwrap();
    }
    let budget = sound("/SetBudget");
    call(served.channel().await, "/bantam.v1.ModelService/SetBudget", budget, 1, None).await.unwrap();
    emptied(&served).await;
    is_serving(&served).await;
    assert_eq!(served.meters.streams.get(), 0, "no request is open");
    assert_eq!(panics(), before, "no panics");
    served.end().await;
}
