//! Many streams of a real model through the daemon, a round for every line of standard input. `streams.py` writes the
//! lines, in turns with a rival.

use std::io::{BufRead, Write};
use std::time::Duration;

use crate::Failed;
use crate::served::{self, Client, Folder, ask_all, request};

/// The ids of stream number `stream`: the same in streams.py.
fn prompt(stream: usize, count: usize) -> Vec<u32> {
    (0..count).map(|at| ((at + 1) * 7919 + stream * 104_729) as u32 % 32_000).collect()
}

async fn round(client: &Client, model: &str, [streams, count, tokens]: [usize; 3]) -> Result<String, Failed> {
    let requests = (0..streams).map(|stream| request(model, prompt(stream, count), tokens as u32)).collect();
    let replies = ask_all(client, requests).await?;
    let begin = replies.iter().map(|reply| reply.sent).min().ok_or("no stream")?;
    let since = |time: std::time::Instant| (time - begin).as_secs_f64();
    let first: Vec<f64> = replies.iter().map(|reply| since(reply.tokens[0])).collect();
    let longest = |tokens: &[std::time::Instant]| {
        tokens.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(Duration::ZERO).as_secs_f64()
    };
    let gap = replies.iter().map(|reply| longest(&reply.tokens)).fold(0.0, f64::max);
    let end = replies.iter().filter_map(|reply| reply.tokens.last()).max().ok_or("no token")?;
    let count: usize = replies.iter().map(|reply| reply.tokens.len()).sum();
    let seconds = since(*end);
    Ok(format!(r#"{{"tokens": {count}, "seconds": {seconds}, "first": {first:?}, "gap": {gap}}}"#))
}

/// Settings follow the model, as `schedule.slots=8`.
pub(crate) fn run(model: &str, settings: &[&str]) -> Result<(), Failed> {
    let pair = |word: &&str| {
        let (key, value) = word.split_once('=').ok_or("expected KEY=VALUE")?;
        Ok::<_, Failed>((key.to_owned(), vec![value.to_owned()]))
    };
    let values = settings.iter().map(pair).collect::<Result<_, _>>()?;
    let folder = Folder::new()?;
    let daemon = served::daemon(&folder, None, values)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(daemon.client())?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let numbers = line.split_whitespace().map(str::parse).collect::<Result<Vec<usize>, _>>()?;
        let sizes = numbers.try_into().map_err(|_| "expected streams, prompt and new tokens")?;
        println!("{}", runtime.block_on(round(&client, model, sizes))?);
        std::io::stdout().flush()?;
    }
    Ok(())
}
