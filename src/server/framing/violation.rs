//! The rules of [`framing`](super), each as what a request did that breaks it.

use std::fmt;

/// The rule that a request broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    EmptyLines,
    RequestLine,
    Fragment,
    Version,
    LineEnd,
    Folded,
    FieldName,
    FieldValue,
    ContentLength,
    SeveralContentLengths,
    TransferEncoding,
    SeveralTransferEncodings,
    TransferEncodingIn10,
    BothFramings,
    ChunkSize,
    ChunkEnd,
    SizeLine,
    Trailers,
    FramingInTrailers,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EmptyLines => "more than one empty line before the request",
            Self::RequestLine => "the request line is not `METHOD target HTTP/1.1`",
            Self::Fragment => "the request target has a `#`",
            Self::Version => "the version is neither HTTP/1.1 nor HTTP/1.0",
            Self::LineEnd => "a line does not end with CR LF",
            Self::Folded => "a header goes on in a second line",
            Self::FieldName => "a header name has a space or another character that is not for names",
            Self::FieldValue => "a header value has a control character",
            Self::ContentLength => "Content-Length is not one number",
            Self::SeveralContentLengths => "there are several Content-Lengths",
            Self::TransferEncoding => "Transfer-Encoding is not `chunked`",
            Self::SeveralTransferEncodings => "there are several Transfer-Encodings",
            Self::TransferEncodingIn10 => "there is a Transfer-Encoding in HTTP/1.0",
            Self::BothFramings => "there are both Content-Length and Transfer-Encoding",
            Self::ChunkSize => "a chunk size is not a hexadecimal number",
            Self::ChunkEnd => "a chunk is longer than its size",
            Self::SizeLine => "the chunk extensions are too long",
            Self::Trailers => "the trailers are too long",
            Self::FramingInTrailers => "there is a Content-Length or Transfer-Encoding among the trailers",
        })
    }
}
