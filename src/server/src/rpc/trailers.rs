//! Response heads and trailers, and how a status is written into them.

use std::fmt::Write as _;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use quorate_api::{Code, Status};

const GRPC_STATUS: &str = "grpc-status";
const GRPC_MESSAGE: &str = "grpc-message";
const GRPC_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// The head that precedes messages.
pub(crate) fn head() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, GRPC_TYPE);
    response
}

/// The trailers of a call that went well.
pub(crate) fn ok() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

/// The trailers of a call that ended with `status`.
pub(crate) fn of(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    write(&mut trailers, status);
    trailers
}

/// A response that is nothing but its status, with the HTTP status that goes with it.
pub(crate) fn only(http: StatusCode, status: &Status) -> Response<()> {
    let mut response = head();
    *response.status_mut() = http;
    write(response.headers_mut(), status);
    response
}

fn write(headers: &mut HeaderMap, status: &Status) {
    headers.insert(GRPC_STATUS, code_value(status.code));
    if !status.message.is_empty()
        && let Ok(value) = HeaderValue::from_str(&percent_encode(&status.message))
    {
        headers.insert(GRPC_MESSAGE, value);
    }
}

fn code_value(code: Code) -> HeaderValue {
    HeaderValue::from_static(match code {
        Code::Ok => "0",
        Code::Canceled => "1",
        Code::Unknown => "2",
        Code::InvalidArgument => "3",
        Code::DeadlineExceeded => "4",
        Code::NotFound => "5",
        Code::AlreadyExists => "6",
        Code::PermissionDenied => "7",
        Code::ResourceExhausted => "8",
        Code::FailedPrecondition => "9",
        Code::Aborted => "10",
        Code::OutOfRange => "11",
        Code::Unimplemented => "12",
        Code::Internal => "13",
        Code::Unavailable => "14",
        Code::DataLoss => "15",
        Code::Unauthenticated => "16",
    })
}

/// Printable ASCII except `%` stays, every other byte becomes `%XX`. Long texts are cut, since clients bound headers.
fn percent_encode(message: &str) -> String {
    const BYTES_MAX: usize = 4096;
    let mut out = String::with_capacity(message.len());
    for &byte in message.as_bytes().iter().take(BYTES_MAX) {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => {
                // Writing into a String cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_written_by_number() {
        for code in Code::ALL {
            assert_eq!(code_value(code), code.number().to_string());
        }
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encode("etcdserver: no leader"), "etcdserver: no leader");
        assert_eq!(percent_encode("100% \n\"ü\""), "100%25 %0A\"%C3%BC\"");
        let status = Status::new(Code::Unknown, "x\u{0}y");
        assert_eq!(of(&status).get(GRPC_MESSAGE).unwrap(), "x%00y");
    }

    #[test]
    fn an_ok_call_has_no_message() {
        assert_eq!(ok().len(), 1);
        assert_eq!(ok().get(GRPC_STATUS).unwrap(), "0");
    }
}
