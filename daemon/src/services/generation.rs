//! `GenerationService`: texts that go on, answers, and what `texts.rs` and `measures.rs` do.

use std::sync::Arc;

use bantam_model::adapter::Guest;
use bantam_model::generation::GenerationSettings;
use bantam_model::prompt::Prompt;
use bantam_model::reply::reader::Reader;
use bantam_model::template::Conversation;
use bantam_model::turn::{Limits, Turn};
use bantam_proto::v1;
use bantam_proto::v1::generation_service_server::GenerationService;
use tokio_stream::Empty;
use tonic::{Request, Response, Status, Streaming};

use super::conversation::conversation;
use super::reply::{Replies, Says, number};
use super::request::{self, Input, Sampling};
use super::{Caller, Services};
use crate::doors::Door;
use crate::models::{Catalog, Lease, NotFound, Opened};
use crate::scheduler::{Reuse, Work};
use crate::status::Trouble;

/// What is to be continued: a prompt, or a conversation.
enum Asked {
    Prompt(Input),
    Chat(Conversation),
}

impl Asked {
    /// Its field in the request.
    fn field(&self) -> &'static str {
        match self {
            Asked::Prompt(Input::Text(_)) => "prompt",
            Asked::Prompt(Input::Ids(_)) => "prompt_ids",
            Asked::Chat(_) => "messages",
        }
    }
}

fn limits(lease: &Lease) -> Limits {
    let limits = lease.desk.limits();
    Limits { context: limits.context, vocab: limits.vocab }
}

/// A text as the model reads it; refused where its tokenizer gives up.
pub(super) fn encode(opened: &Opened, text: &str, special: bool, field: &str) -> Result<Vec<u32>, Trouble> {
    let text_of_model = opened.text()?;
    text_of_model.tokenizer.encode(text, special).map_err(|error| Trouble::field(field, error))
}

/// A conversation as the model reads it, and its ids.
pub(super) fn prompt(opened: &Opened, conversation: &Conversation) -> Result<(String, Vec<u32>), Trouble> {
    let Some(template) = opened.template()? else {
        return Err(Trouble::Precondition(
            "the model has no chat template, it was not made to chat; use Generate, or fetch its \
             chat_template.jinja where it was left out"
                .to_owned(),
        ));
    };
    let tokenizer = &opened.text()?.tokenizer;
    let prompt = Prompt::of(conversation, template, tokenizer);
    let prompt = prompt.map_err(|error| Trouble::field("messages", error))?;
    request::check_bytes("messages", prompt.text())?;
    let ids = prompt.ids(tokenizer).map_err(|error| Trouble::field("messages", error))?;
    Ok((prompt.into_text(), ids))
}

/// The adapter that a request names, opened for its model.
fn adapter(catalog: &Catalog, lease: &Lease, name: &str, door: Door) -> Result<Option<Arc<Guest>>, Trouble> {
    const FIELD: &str = "options.adapter";
    if name.is_empty() {
        return Ok(None);
    }
    let folder = catalog.adapter(name, door).map_err(|error| match error {
        NotFound::PathFromAfar => error.into(),
        _ => Trouble::field(FIELD, error),
    })?;
    lease.guest(&folder).map(Some).map_err(|error| Trouble::field(FIELD, error))
}

/// A turn with the prompt that it answers, as `bantam run` and `bantam chat` make it.
fn turn(lease: &Lease, asked: Asked, sampling: &Sampling) -> Result<Turn, Trouble> {
    let (opened, limits, field) = (&lease.opened, limits(lease), asked.field());
    let (prompt, reader) = match &asked {
        Asked::Prompt(Input::Text(text)) => {
            let ids = encode(opened, text, true, field)?;
            (ids, Some(Reader::plain(opened.text()?.table.clone())))
        }
        // Without a tokenizer there are only numbers to show, and no strings to stop at.
        Asked::Prompt(Input::Ids(ids)) => {
            let text = match sampling.flags.stop.is_empty() {
                true => opened.text_if_any()?,
                false => Some(opened.text()?),
            };
            (ids.clone(), text.map(|text| Reader::plain(text.table.clone())))
        }
        Asked::Chat(conversation) => {
            let ((_, ids), text) = (prompt(opened, conversation)?, opened.text()?);
            let (found, context) = (ids.len(), limits.context);
            if found >= context {
                let why = format!(
                    "expected less than {context} tokens, the model's context here, found {found}; leave messages \
                     out, or load the model with a longer context"
                );
                return Err(Trouble::field(field, why));
            }
            (ids, Some(Reader::for_chat(&text.tokenizer, text.table.clone())))
        }
    };
    let settings: GenerationSettings = opened.settings(&sampling.flags)?.map_err(request::of_settings)?;
    let turn = Turn::new(limits, reader, settings, &prompt, sampling.alternatives);
    turn.map_err(|error| request::of_turn(error, field))
}

impl Services {
    async fn reply<R: Says>(
        &self,
        caller: &Caller,
        model: String,
        asked: Asked,
        sampling: Sampling,
    ) -> Result<Replies<R>, Trouble> {
        let lease = self.lease(model, caller).await?;
        let (at_work, seed, catalog, door) =
            (lease.clone(), sampling.seed, self.catalog.clone(), caller.door);
        let scope = sampling.scope.clone();
        let made = self.work(move || {
            let adapter = adapter(&catalog, &at_work, &sampling.adapter, door)?;
            Ok::<_, Trouble>((turn(&at_work, asked, &sampling)?, adapter))
        });
        let (turn, adapter) = made.await??;
        let reuse = scope.map(|scope| caller.reuse(&scope, adapter.as_deref()));
        let prompt_tokens = number(turn.prompt_tokens());
        let started = v1::Started { model_id: lease.handle(), prompt_tokens, seed, ..v1::Started::default() };
        let answer = self.submit(caller, &lease, Work::Generate(Box::new(turn)), adapter, reuse)?;
        Ok(Replies::new(answer, lease, self.meters.clone(), started))
    }
}

#[tonic::async_trait]
impl GenerationService for Services {
    type GenerateStream = Replies<v1::GenerateResponse>;

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let caller = Caller::of(&request);
        let v1::GenerateRequest { model, max_new_tokens, options, input } = request.into_inner();
        let asked = Asked::Prompt(request::prompt(input)?);
        let sampling = request::sampling(options, max_new_tokens)?;
        Ok(Response::new(caller.within(self.reply(&caller, model, asked, sampling)).await?))
    }

    type ChatStream = Replies<v1::ChatResponse>;

    async fn chat(&self, request: Request<v1::ChatRequest>) -> Result<Response<Self::ChatStream>, Status> {
        let caller = Caller::of(&request);
        let v1::ChatRequest {
            model,
            messages,
            max_new_tokens,
            tools,
            options,
            template_arguments,
            now,
            tool_choice,
        } = request.into_inner();
        if tool_choice.is_some() {
            return Err(Trouble::NotYet("tool_choice is not yet: leave it out, the model chooses").into());
        }
        let asked = v1::Conversation { messages, tools, template_arguments, now };
        let asked = Asked::Chat(conversation(asked, true)?);
        let sampling = request::sampling(options, max_new_tokens)?;
        Ok(Response::new(caller.within(self.reply(&caller, model, asked, sampling)).await?))
    }

    type SessionStream = Empty<Result<v1::SessionResponse, Status>>;

    async fn session(
        &self,
        _: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(Trouble::NotYet("sessions of editors are not yet; use Generate, and end the call to cancel it")
            .into())
    }

    async fn tokenize(
        &self,
        request: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        let caller = Caller::of(&request);
        Ok(Response::new(caller.within(self.tokenized(&caller, request.into_inner())).await?))
    }

    async fn detokenize(
        &self,
        request: Request<v1::DetokenizeRequest>,
    ) -> Result<Response<v1::DetokenizeResponse>, Status> {
        let caller = Caller::of(&request);
        Ok(Response::new(caller.within(self.detokenized(&caller, request.into_inner())).await?))
    }

    async fn score(&self, request: Request<v1::ScoreRequest>) -> Result<Response<v1::ScoreResponse>, Status> {
        let caller = Caller::of(&request);
        Ok(Response::new(caller.within(self.scored(&caller, request.into_inner())).await?))
    }

    async fn embed(&self, request: Request<v1::EmbedRequest>) -> Result<Response<v1::EmbedResponse>, Status> {
        let caller = Caller::of(&request);
        Ok(Response::new(caller.within(self.embedded(&caller, request.into_inner())).await?))
    }
}

impl Services {
    /// Hands in work. A model that broke leaves.
    pub(super) fn submit(
        &self,
        caller: &Caller,
        lease: &Arc<Lease>,
        work: Work,
        adapter: Option<Arc<Guest>>,
        reuse: Option<Reuse>,
    ) -> Result<crate::scheduler::Answer, Trouble> {
        let answer = caller.submit(&lease.desk, work, adapter, reuse);
        if answer.is_err() && lease.desk.is_broken() {
            lease.broke();
        }
        answer
    }
}
