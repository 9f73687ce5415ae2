//! Errors as etcd's gateway gives them.

use axum::{body::Body, http::StatusCode, response::Response};
use serde::Serialize;
use tonic::{Code, Status};

use super::json;
use crate::api::http::Refusal;

/// An error that is the whole answer.
#[derive(Serialize)]
struct Whole<'a> {
    error: &'a str,
    code: i32,
    message: &'a str,
}

/// An error that ends a stream.
#[derive(Serialize)]
struct Last<'a> {
    error: LastError<'a>,
}

#[derive(Serialize)]
struct LastError<'a> {
    grpc_code: i32,
    http_code: u16,
    message: &'a str,
    http_status: &'a str,
}

/// The answer that says why a call failed.
pub(super) fn whole(status: &Status) -> Response {
    answer(http_status(status.code()), status.code(), status.message())
}

/// The answer to a path without a method.
pub(super) fn not_found() -> Response {
    whole(&Status::new(Code::NotFound, "Not Found"))
}

/// The answer to a body that was not read to its end.
pub(super) fn unread(refusal: Refusal) -> Response {
    let (status, message) = refusal.into_parts();
    let code = match status {
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        _ => Code::InvalidArgument,
    };
    answer(status, code, &message)
}

fn answer(status: StatusCode, code: Code, message: &str) -> Response {
    let error = Whole { error: message, code: code.into(), message };
    let mut response = json(Body::from(line(&error)));
    *response.status_mut() = status;
    response
}

/// The last line of a stream that failed.
pub(super) fn last(status: &Status) -> Vec<u8> {
    let http = http_status(status.code());
    line(&Last {
        error: LastError {
            grpc_code: status.code().into(),
            http_code: http.as_u16(),
            message: status.message(),
            http_status: http.canonical_reason().unwrap_or_default(),
        },
    })
}

fn line(error: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(error).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The HTTP status that stands for a code of gRPC.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn an_error_has_etcds_form() {
        let response = whole(&Status::not_found("etcdserver: requested lease not found"));
        assert_eq!(response.status(), 404);
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = response.into_body().collect().await.expect("in memory").to_bytes();
        assert_eq!(
            body,
            "{\"error\":\"etcdserver: requested lease not found\",\"code\":5,\
             \"message\":\"etcdserver: requested lease not found\"}\n"
        );
        assert_eq!(
            last(&Status::unavailable("gone")),
            b"{\"error\":{\"grpc_code\":14,\"http_code\":503,\"message\":\"gone\",\
              \"http_status\":\"Service Unavailable\"}}\n"
        );
    }

    #[test]
    fn every_code_has_a_status() {
        for (code, status) in [
            (Code::InvalidArgument, 400),
            (Code::OutOfRange, 400),
            (Code::FailedPrecondition, 400),
            (Code::NotFound, 404),
            (Code::AlreadyExists, 409),
            (Code::ResourceExhausted, 429),
            (Code::Cancelled, 499),
            (Code::Unimplemented, 501),
            (Code::Unavailable, 503),
            (Code::DeadlineExceeded, 504),
            (Code::DataLoss, 500),
        ] {
            assert_eq!(http_status(code).as_u16(), status, "{code:?}");
        }
    }
}
