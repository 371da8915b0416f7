//! What goes back to the app: [`Reply`]'s body is WeChat's stream or our own few bytes, and carries the call's
//! record, so that the record closes when the last byte has gone or the app has left.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Response, Version};
use http_body::{Body, Frame, SizeHint};

use crate::error::Failure;
use crate::proxy::record::Record;
use crate::proxy::upstream::{Cut, ReplyBody};
use crate::server::Connection;

/// A reply's body on its way to the app.
pub struct Outbound {
    content: Content,
    record: Record,
    /// Set when the end of this body is the end of the connection (HTTP/1.0 without a length): a cut must then be
    /// a reset, or the part would look whole.
    ends_connection: Option<Connection>,
}

enum Content {
    Ours(Option<Bytes>),
    WeChats(ReplyBody),
}

impl Outbound {
    /// A reply of ours.
    #[must_use]
    pub fn ours(
        reply: Response<Bytes>,
        cause: Option<crate::error::Cause>,
        mut record: Record,
    ) -> Response<Self> {
        record.answered(reply.status(), cause);
        reply.map(|bytes| Self { content: Content::Ours(Some(bytes)), record, ends_connection: None })
    }

    /// An error of ours.
    #[must_use]
    pub fn failure(failure: &Failure, record: Record) -> Response<Self> {
        Self::ours(failure.reply(), Some(failure.cause), record)
    }

    /// WeChat's reply.
    #[must_use]
    pub fn wechats(
        mut reply: crate::proxy::upstream::Reply,
        http10: bool,
        connection: &Connection,
        mut record: Record,
    ) -> Response<Self> {
        record.answered(reply.head.status, None);
        // The version is between neighbours. hyper would take an upstream's 1.0 for the app's, and mark the end of
        // a reply without a length by closing, where a cut looks whole, instead of with chunks. To an app of 1.0
        // it speaks 1.0 by itself.
        reply.head.version = Version::HTTP_11;
        let ends_connection =
            (http10 && reply.body.size_hint().exact().is_none()).then(|| connection.clone());
        Response::from_parts(
            reply.head,
            Self { content: Content::WeChats(reply.body), record, ends_connection },
        )
    }
}

impl Body for Outbound {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        let next = match &mut this.content {
            Content::Ours(bytes) => Poll::Ready(
                bytes.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes))),
            ),
            Content::WeChats(body) => Pin::new(body).poll_frame(cx),
        };
        if let Poll::Ready(next) = &next {
            match next {
                Some(Err(cut)) => {
                    this.record.cut(cut.0.cause);
                    tracing::warn!(cause = cut.0.cause.name(), "{}", cut.0.message);
                    if let Some(connection) = &this.ends_connection {
                        connection.reset_when_closed();
                    }
                }
                Some(Ok(_)) if !this.is_end_stream() => {}
                _ => this.record.whole(),
            }
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Ours(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Content::WeChats(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Ours(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::WeChats(body) => body.size_hint(),
        }
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        // hyper does not poll what is known to be at its end.
        if self.is_end_stream() {
            self.record.whole();
        }
    }
}
