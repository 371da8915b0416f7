//! What goes back to the app: a [`Reply`]'s body is WeChat's stream or our own few
//! bytes, and carries the call's record, so that the record closes when the last byte has gone or the app has left.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::{Body, Frame, SizeHint};

use crate::error::Failure;
use crate::proxy::mask::{Mask, Masking};
use crate::proxy::record::Record;
use crate::proxy::upstream::{Cut, Reply, ReplyBody};
use crate::server::{Connection, wordless};

/// A reply's body on its way to the app.
///
/// Boxed, as hyper moves it about a dozen times before it is polled: an allocation costs less.
pub struct Outbound(Box<Inner>);

struct Inner {
    content: Content,
    record: Record,
    /// Set when the end of this body is the end of the connection (HTTP/1.0 without a length): a cut must then be
    /// a reset, or the part would look whole.
    ends_connection: Option<Connection>,
    /// The body has broken off, which hyper is told when it asks again.
    cut: Option<Cut>,
}

enum Content {
    Ours(Option<Bytes>),
    /// WeChat's, and the end of a piece that goes by itself.
    WeChats(ReplyBody, Masking, Option<Bytes>),
}

impl Content {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self {
            Self::Ours(bytes) => {
                let bytes = bytes.take().filter(|bytes| !bytes.is_empty());
                Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::WeChats(_, _, last) if last.is_some() => {
                Poll::Ready(last.take().map(|last| Ok(Frame::data(last))))
            }
            Self::WeChats(body, masking, last) => loop {
                let mut go = match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(piece) => masking.push(piece),
                        Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                    },
                    Some(Err(cut)) => return Poll::Ready(Some(Err(cut))),
                    None if masking.held() > 0 => masking.finish(),
                    None => return Poll::Ready(None),
                };
                // All of it may be held back, as what could be the beginning of a credential.
                if !go.is_empty() {
                    // SECURITY: the socket takes such an end for hyper's own words and puts others in their place.
                    // Anyone may have stored a file that ends so.
                    if wordless::is_an_answer(&go) {
                        *last = Some(go.split_off(go.len() - 1));
                    }
                    return Poll::Ready(Some(Ok(Frame::data(go))));
                }
            },
        }
    }
}

impl Outbound {
    fn new(content: Content, record: Record, ends_connection: Option<Connection>) -> Self {
        Self(Box::new(Inner { content, record, ends_connection, cut: None }))
    }

    /// A reply of ours.
    #[must_use]
    pub fn ours(
        reply: Response<Bytes>,
        cause: Option<crate::error::Cause>,
        mut record: Record,
    ) -> Response<Self> {
        record.answered(reply.status(), cause);
        reply.map(|bytes| Self::new(Content::Ours(Some(bytes)), record, None))
    }

    /// An error of ours.
    #[must_use]
    pub fn failure(failure: &Failure, record: Record) -> Response<Self> {
        Self::ours(failure.reply(), Some(failure.cause), record)
    }

    /// WeChat's reply, with what it echoes of our credentials masked.
    #[must_use]
    pub fn wechats(
        reply: Reply,
        mask: Mask,
        http10: bool,
        connection: &Connection,
        mut record: Record,
    ) -> Response<Self> {
        let Reply { mut head, body, .. } = reply;
        record.answered(head.status, None);
        let ends_connection = (http10 && body.size_hint().exact().is_none()).then(|| connection.clone());
        mask.text(head.text_mut());
        let (status, length) = (head.status, head.length_without_body);
        connection.answer_with(head.into_lines());
        let content = Content::WeChats(body, Masking::new(mask), None);
        // Of the head hyper decides what concerns the connection and where the body ends; the rest is in the lines.
        let mut response = Response::new(Self::new(content, record, ends_connection));
        *response.headers_mut() = connection.map();
        *response.status_mut() = status;
        if let Some(length) = length {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        response
    }
}

impl Body for Outbound {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self.0;
        if let Some(cut) = this.cut.take() {
            return Poll::Ready(Some(Err(cut)));
        }
        let next = this.content.poll_frame(cx);
        if let Poll::Ready(next) = &next {
            if let Some(Ok(frame)) = next
                && let Some(piece) = frame.data_ref()
            {
                this.record.passed(piece);
            }
            match next {
                Some(Err(cut)) => {
                    this.record.cut(&cut.0);
                    tracing::warn!(cause = cut.0.cause.name(), "{}", cut.0.message);
                    if let Some(connection) = &this.ends_connection {
                        connection.reset_when_closed();
                    }
                }
                Some(Ok(_)) if !this.is_end_stream() => {}
                _ => this.record.whole(),
            }
        }
        // SECURITY: at an error hyper drops what it has not written yet, the head included. An app that gets not a byte on
        // a kept connection takes it for one that was closed while idle, and sends its call again: libcurl does, be it a
        // POST. So hyper writes first, and hears of the cut when it asks again.
        if let Poll::Ready(Some(Err(cut))) = next {
            this.cut = Some(cut);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0.content {
            Content::Ours(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::WeChats(body, masking, last) => {
                let held = (masking.held() + last.as_ref().map_or(0, Bytes::len)) as u64;
                body.size_hint()
                    .exact()
                    .map_or_else(SizeHint::default, |rest| SizeHint::with_exact(rest + held))
            }
        }
    }
}

impl Inner {
    fn is_end_stream(&self) -> bool {
        if self.cut.is_some() {
            return false;
        }
        match &self.content {
            Content::Ours(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Content::WeChats(body, masking, last) => {
                body.is_end_stream() && masking.held() == 0 && last.is_none()
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // hyper does not poll what is known to be at its end.
        if self.is_end_stream() {
            self.record.whole();
        }
    }
}
