//! Jobs have their place in the protocol and are not there yet.

use bantam_proto::v1;
use bantam_proto::v1::job_service_server::JobService;
use tokio_stream::Empty;
use tonic::{Request, Response, Status};

use crate::status::Trouble;

/// Says so.
#[derive(Debug, Clone, Copy)]
pub(super) struct Jobs;

fn not_yet<T>(what: &'static str) -> Result<Response<T>, Status> {
    Err(Trouble::NotYet(what).into())
}

const NO_JOBS: &str = "jobs are not yet: this version keeps no list of them; use bantam's own verbs for now";

#[tonic::async_trait]
impl JobService for Jobs {
    async fn quantize(
        &self,
        _: Request<v1::QuantizeRequest>,
    ) -> Result<Response<v1::QuantizeResponse>, Status> {
        not_yet("quantizing as a job is not yet; a model can be quantized while it is loaded (LoadOptions)")
    }

    async fn merge(&self, _: Request<v1::MergeRequest>) -> Result<Response<v1::MergeResponse>, Status> {
        not_yet("merging an adapter as a job is not yet; merge it with the tool that trained it")
    }

    async fn train(&self, _: Request<v1::TrainRequest>) -> Result<Response<v1::TrainResponse>, Status> {
        not_yet("training as a job is not yet")
    }

    async fn evaluate(
        &self,
        _: Request<v1::EvaluateRequest>,
    ) -> Result<Response<v1::EvaluateResponse>, Status> {
        not_yet("evaluating as a job is not yet; use bantam eval, or GenerationService.Score")
    }

    type WatchStream = Empty<Result<v1::WatchResponse, Status>>;

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        not_yet(NO_JOBS)
    }

    async fn cancel(&self, _: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        not_yet(NO_JOBS)
    }

    async fn list(
        &self,
        _: Request<v1::JobServiceListRequest>,
    ) -> Result<Response<v1::JobServiceListResponse>, Status> {
        not_yet(NO_JOBS)
    }
}
