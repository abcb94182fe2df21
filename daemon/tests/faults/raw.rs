//! Requests as bytes: what no honest client sends.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::Body as _;
use prost::bytes::{Buf, BufMut, Bytes};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::{HeaderMap, Request as HttpRequest};
use tonic::transport::Channel;
use tonic::{Request, Status};
use tower::Service;

use crate::support::LONG;

/// Messages as they are on the wire.
#[derive(Clone, Copy, Default)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; from.remaining()];
        from.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

/// Calls a method with a message, and takes at most so many answers before it goes away.
pub(crate) async fn call(
    channel: Channel,
    path: &str,
    message: Vec<u8>,
    most: usize,
    timeout: Option<Duration>,
) -> Result<usize, Status> {
    let mut client = Grpc::new(channel);
    let mut request = Request::new(message);
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    let calling = async {
        client.ready().await.expect("the connection lives");
        let path = path.parse().unwrap();
        let mut answers = client.server_streaming(request, path, Raw).await?.into_inner();
        let mut count = 0;
        while count < most && answers.message().await?.is_some() {
            count += 1;
        }
        Ok(count)
    };
    tokio::time::timeout(LONG, calling).await.expect("a call ends")
}

/// A body of these bytes: whole, or with more to come that never comes.
struct Sent {
    bytes: Option<Bytes>,
    is_whole: bool,
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = Status;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        match (self.bytes.take(), self.is_whole) {
            (Some(bytes), _) => Poll::Ready(Some(Ok(http_body::Frame::data(bytes)))),
            (None, true) => Poll::Ready(None),
            (None, false) => Poll::Pending,
        }
    }
}

/// Posts a body as it is, frames of gRPC included, and says how the call ended.
pub(crate) async fn post(mut channel: Channel, path: &str, body: Vec<u8>, is_whole: bool) -> Status {
    let body = tonic::body::Body::new(Sent { bytes: Some(body.into()), is_whole });
    let request = HttpRequest::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let calling = async {
        poll_fn(|context| channel.poll_ready(context)).await.unwrap();
        let answer = match channel.call(request).await {
            Ok(answer) => answer,
            Err(error) => return Status::from_error(error.into()),
        };
        let (head, mut body) = answer.into_parts();
        if let Some(status) = Status::from_header_map(&head.headers) {
            return status;
        }
        let mut trailers = HeaderMap::new();
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            match frame.map(http_body::Frame::into_trailers) {
                Ok(Ok(found)) => trailers = found,
                Ok(Err(_)) => {}
                Err(error) => return error,
            }
        }
        Status::from_header_map(&trailers).expect("an answer ends with a status")
    };
    tokio::time::timeout(LONG, calling).await.expect("a call ends")
}

/// A message in gRPC's frame, with a length and a flag of the caller's choice.
pub(crate) fn framed(flag: u8, length: u32, message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![flag];
    bytes.extend(length.to_be_bytes());
    bytes.extend(message);
    bytes
}

/// A number in protobuf's own writing.
pub(crate) fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A field: its key, then its bytes, with their length where the wire type has one.
pub(crate) fn field(number: u32, wire: u8, bytes: &[u8]) -> Vec<u8> {
    let mut all = varint(u64::from(number) << 3 | u64::from(wire));
    if wire == 2 {
        all.extend(varint(bytes.len() as u64));
    }
    all.extend(bytes);
    all
}
