//! `Score` and `Embed`: given tokens are read, in the same steps as replies.

use std::collections::VecDeque;
use std::sync::Arc;

use bantam_model::embedding::Pooling;
use bantam_proto::v1;

use super::generation::encode;
use super::reply::{count, number};
use super::request::{self, Input};
use super::{Caller, Services};
use crate::models::Lease;
use crate::scheduler::{Answer, Embed, Event, Failure, Score, Work};
use crate::status::Trouble;

/// The tokens of an input, and its field in the request.
fn ids(lease: &Lease, input: Input, [text, ids]: [&str; 2]) -> Result<(Vec<u32>, String), Trouble> {
    match input {
        Input::Text(words) => Ok((encode(&lease.opened, &words, true, text)?, text.to_owned())),
        Input::Ids(found) => Ok((found, ids.to_owned())),
    }
}

impl Services {
    pub(super) async fn scored(
        &self,
        caller: &Caller,
        request: v1::ScoreRequest,
    ) -> Result<v1::ScoreResponse, Trouble> {
        let v1::ScoreRequest { model, input, first_scored } = request;
        let input = request::scored(input)?;
        if first_scored == Some(0) {
            let why = "expected 1 or more, found 0: the first token has nothing before it; leave it out";
            return Err(Trouble::field("first_scored", why));
        }
        let lease = self.lease(model, caller).await?;
        let at_work = lease.clone();
        let made = self.work(move || {
            let (ids, field) = ids(&at_work, input, ["text", "ids"])?;
            let first = first_scored.map_or(1, |first| first as usize);
            let score = Score::new(&at_work.desk.limits(), &ids, first);
            Ok::<_, Trouble>((score.map_err(|error| request::of_work(error, &field))?, ids))
        });
        let (score, ids) = made.await??;
        let answer = self.submit(caller, &lease, Work::Score(score), None, None)?;
        let Work::Score(score) = self.result(&lease, answer).await? else { return Err(Trouble::Panicked) };
        let all = score.log_probabilities();
        let total: f64 = all.iter().sum();
        Ok(v1::ScoreResponse {
            ids,
            log_probabilities: all.iter().map(|&value| value as f32).collect(),
            total_log_probability: total,
            perplexity: (-total / all.len().max(1) as f64).exp(),
        })
    }

    pub(super) async fn embedded(
        &self,
        caller: &Caller,
        request: v1::EmbedRequest,
    ) -> Result<v1::EmbedResponse, Trouble> {
        let v1::EmbedRequest { model, inputs, pooling, normalize } = request;
        let (pooling, inputs) = (request::pooling(pooling)?, request::embedded(inputs)?);
        let lease = self.lease(model, caller).await?;
        let limits = lease.desk.limits();
        let (bytes, most) = ((inputs.len() * limits.hidden * 4) as u64, self.settings.message_bytes.0);
        if bytes >= most {
            let why =
                format!("expected an answer below {most} bytes, found {bytes}; send fewer texts at once");
            return Err(Trouble::field("inputs", why));
        }
        let works = self.embeds(&lease, inputs, pooling).await?;
        // As many as there are places: others have requests too.
        let (mut waiting, mut embeddings) = (VecDeque::new(), Vec::with_capacity(works.len()));
        for work in works {
            if waiting.len() >= limits.sequences
                && let Some(answer) = waiting.pop_front()
            {
                embeddings.push(self.embedding(&lease, answer, normalize).await?);
            }
            waiting.push_back(self.submit(caller, &lease, work, None, None)?);
        }
        for answer in waiting {
            embeddings.push(self.embedding(&lease, answer, normalize).await?);
        }
        Ok(v1::EmbedResponse { embeddings })
    }

    async fn embeds(
        &self,
        lease: &Arc<Lease>,
        inputs: Vec<Input>,
        pooling: Pooling,
    ) -> Result<Vec<Work>, Trouble> {
        let at_work = lease.clone();
        let made = self.work(move || {
            let one = |(number, input): (usize, Input)| {
                let (text, of_ids) = (format!("inputs[{number}].text"), format!("inputs[{number}].ids"));
                let (ids, field) = ids(&at_work, input, [&text, &of_ids])?;
                let embed = Embed::new(&at_work.desk.limits(), ids, pooling);
                Ok(Work::Embed(embed.map_err(|error| request::of_work(error, &field))?))
            };
            inputs.into_iter().enumerate().map(one).collect()
        });
        made.await?
    }

    async fn embedding(
        &self,
        lease: &Arc<Lease>,
        answer: Answer,
        normalize: bool,
    ) -> Result<v1::Embedding, Trouble> {
        let work = self.result(lease, answer).await?;
        let tokens = number(work.prompt_tokens());
        let Work::Embed(mut embed) = work else { return Err(Trouble::Panicked) };
        let vector = embed.vector().map_err(|error| Trouble::Broken(error.to_string()))?;
        let length = vector.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        let by = if normalize && length > 0.0 { length } else { 1.0 };
        let values = vector.iter().map(|&value| (f64::from(value) / by) as f32).collect();
        Ok(v1::Embedding { values, tokens })
    }

    /// Waits for what comes of work that says nothing before its end.
    async fn result(&self, lease: &Arc<Lease>, mut answer: Answer) -> Result<Work, Trouble> {
        while let Some(event) = answer.next().await {
            let Event::Ended(ended) = event else { continue };
            if ended.outcome.is_err() && lease.desk.is_broken() {
                lease.broke();
            }
            if ended.outcome.is_ok() {
                count(&self.meters, &ended);
            }
            ended.outcome?;
            return ended.work.ok_or(Trouble::Failed(Failure::Gone));
        }
        Err(Trouble::Failed(Failure::Gone))
    }
}
