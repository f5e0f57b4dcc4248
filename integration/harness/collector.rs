//! An HTTP/1 server to be posted to: it counts requests by path, and answers 200, with a line of its own or with what was posted.

use std::io;

use tokio::net::TcpStream;

use super::{
    http::{Message, Messages},
    origin::Meter,
    stream::{self, End},
};

/// Serves one connection until the client ends it or asks for that. With a name, it says that in `Server` and sends each body back.
pub(super) async fn serve(stream: &TcpStream, meter: &Meter, name: Option<&str>) -> io::Result<()> {
    let mut messages = Messages::default();
    loop {
        let request = loop {
            if let Some(request) = messages.take()? {
                break request;
            }
            let read = stream::read(stream, |piece| {
                meter.received(piece);
                messages.feed(piece);
            })
            .await?;
            if read.is_none() {
                meter.ended(End::Fin);
                return Ok(());
            }
        };
        meter.requested(request.second_word(), request.body.len() as u64);
        let last = request.is_last();
        let mut fields = if last { "Connection: close\r\n" } else { "" }.to_owned();
        let body = match name {
            None => b"ok\n".to_vec(),
            Some(name) => {
                fields.push_str(&format!("Server: {name}\r\n"));
                request.body
            }
        };
        let answer = Message::answer("200 OK", &fields, body).bytes();
        stream::write(stream, &answer, |n| meter.sent(n)).await?;
        if last {
            return Ok(());
        }
    }
}
