//! Follows the frames that a client sends, for what HTTP/2's library answers by itself and tells nobody: pings, header
//! blocks with an authority that it would refuse, and frames that never end. And those that it is sent, since the library
//! keeps what a client has no window for, and tells nobody when it goes.

use std::time::Instant;

use super::authority;
use super::keepalive::PingWatch;

/// Bytes before the first frame.
const PREFACE_LEN: usize = 24;
const HEAD_LEN: usize = 9;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const PING: u8 = 0x6;
const CONTINUATION: u8 = 0x9;

/// Of PING.
const ACK: u8 = 0x1;
/// Of HEADERS and CONTINUATION.
const END_HEADERS: u8 = 0x4;

#[derive(Debug)]
pub(crate) struct FrameWatch {
    /// Bytes of the present frame that are still to come.
    left: usize,
    head: [u8; HEAD_LEN],
    head_got: usize,
    /// The present frame is HEADERS with these flags, and none of its payload was seen yet.
    headers: Option<u8>,
    /// A header block goes on in further frames.
    in_block: bool,
    /// Since when a frame or a header block has been incomplete.
    unfinished: Option<Instant>,
    /// Length of all header blocks so far.
    header_bytes: u64,
    sent: SentFrames,
    pub(crate) pings: PingWatch,
}

/// The frames that the client is sent.
#[derive(Debug, Default)]
struct SentFrames {
    /// Bytes of the present frame that are still to go.
    left: usize,
    head: [u8; HEAD_LEN],
    head_gone: usize,
}

impl SentFrames {
    /// Whether a frame of a call begins in these bytes.
    fn pass(&mut self, mut bytes: &[u8]) -> bool {
        let mut of_call = false;
        while !bytes.is_empty() {
            let payload = self.left.min(bytes.len());
            self.left -= payload;
            bytes = &bytes[payload..];
            let part = bytes.len().min(HEAD_LEN - self.head_gone);
            self.head[self.head_gone..self.head_gone + part].copy_from_slice(&bytes[..part]);
            self.head_gone += part;
            bytes = &bytes[part..];
            if self.head_gone == HEAD_LEN {
                self.head_gone = 0;
                let [a, b, c, kind, ..] = self.head;
                self.left = u32::from_be_bytes([0, a, b, c]) as usize;
                of_call |= matches!(kind, DATA | HEADERS);
            }
        }
        of_call
    }
}

impl FrameWatch {
    pub(crate) fn new(pings: PingWatch) -> Self {
        Self {
            left: PREFACE_LEN,
            head: [0; HEAD_LEN],
            head_got: 0,
            headers: None,
            in_block: false,
            unfinished: None,
            header_bytes: 0,
            sent: SentFrames::default(),
            pings,
        }
    }

    /// When the frame or header block began to arrive that has not arrived in full. Accurate to the read.
    pub(crate) fn unfinished(&self) -> Option<Instant> {
        self.unfinished
    }

    /// Length of all header blocks so far, as they were sent.
    pub(crate) fn header_bytes(&self) -> u64 {
        self.header_bytes
    }

    /// Follows the frames through bytes as they were read, and repairs what they need repaired.
    pub(crate) fn read(&mut self, mut bytes: &mut [u8]) {
        let mut began = false;
        while !bytes.is_empty() {
            if self.left > 0 {
                let (payload, rest) = bytes.split_at_mut(self.left.min(bytes.len()));
                if let Some(flags) = self.headers.take() {
                    authority::repair(flags, self.left, payload);
                }
                self.left -= payload.len();
                bytes = rest;
                continue;
            }
            began |= self.head_got == 0 && !self.in_block;
            let (part, rest) = bytes.split_at_mut(bytes.len().min(HEAD_LEN - self.head_got));
            self.head[self.head_got..self.head_got + part.len()].copy_from_slice(part);
            self.head_got += part.len();
            bytes = rest;
            if self.head_got == HEAD_LEN {
                self.head_got = 0;
                self.frame();
            }
        }
        let complete = self.left == 0 && self.head_got == 0 && !self.in_block;
        if complete {
            self.unfinished = None;
        } else if began || self.unfinished.is_none() {
            self.unfinished = Some(Instant::now());
        }
    }

    /// Follows the frames through bytes on their way to the client.
    pub(crate) fn sends(&mut self, bytes: &[u8]) {
        if self.sent.pass(bytes) {
            self.pings.sent();
        }
    }

    /// The head of a frame is complete.
    fn frame(&mut self) {
        let [a, b, c, kind, flags, ..] = self.head;
        let len = u32::from_be_bytes([0, a, b, c]);
        self.left = len as usize;
        match kind {
            HEADERS => {
                self.pings.call_began();
                self.headers = (len > 0).then_some(flags);
            }
            PING if flags & ACK == 0 => self.pings.ping(Instant::now()),
            _ => {}
        }
        if kind == HEADERS || kind == CONTINUATION {
            self.in_block = flags & END_HEADERS == 0;
            self.header_bytes += u64::from(len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const PING_FRAME: [u8; 17] = [0, 0, 8, PING, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    fn frames() -> FrameWatch {
        let mut frames = FrameWatch::new(PingWatch::new(Duration::from_secs(3600)));
        frames.read(&mut [0; PREFACE_LEN]);
        frames
    }

    fn headers(flags: u8, block: &[u8]) -> Vec<u8> {
        [&[0, 0, block.len() as u8, HEADERS, flags, 0, 0, 0, 1], block].concat()
    }

    #[test]
    fn pings_are_counted_however_the_bytes_are_cut() {
        let mut bytes = vec![0; PREFACE_LEN];
        for _ in 0..4 {
            bytes.extend_from_slice(&[0, 0, 4, 0x8, 0, 0, 0, 0, 0, 0, 0, 0, 1]); // WINDOW_UPDATE
            bytes.extend_from_slice(&PING_FRAME);
        }
        for size in 1..bytes.len() {
            let mut frames = FrameWatch::new(PingWatch::new(Duration::from_secs(3600)));
            bytes.clone().chunks_mut(size).for_each(|chunk| frames.read(chunk));
            assert_eq!(frames.pings.strikes(), 3, "in pieces of {size}");
            assert_eq!(frames.unfinished(), None);
        }
    }

    #[test]
    fn answers_and_acks_are_no_strikes() {
        let mut frames = frames();
        let mut ack = PING_FRAME;
        ack[4] = ACK;
        for _ in 0..10 {
            frames.read(&mut ack.clone());
            frames.pings.update(true);
            frames.pings.sent();
            frames.read(&mut PING_FRAME.clone());
        }
        assert_eq!(frames.pings.strikes(), 0);
    }

    #[test]
    fn what_a_call_is_sent_makes_pings_welcome_and_answers_to_pings_do_not() {
        let data = [&[0, 0, 40, DATA, 0, 0, 0, 0, 1][..], &[PING; 40]].concat();
        let ack = [&[0, 0, 8, PING, ACK, 0, 0, 0, 0][..], &[DATA; 8]].concat();
        let update = [0, 0, 4, 0x8, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        for size in 1..60 {
            let mut frames = frames();
            for _ in 0..10 {
                for part in [&data, &ack, &update.to_vec(), &ack] {
                    part.chunks(size).for_each(|bytes| frames.sends(bytes));
                }
                frames.read(&mut PING_FRAME.clone());
                assert_eq!(frames.pings.strikes(), 0, "in pieces of {size}");
            }
            for strikes in 1..3 {
                ack.chunks(size).for_each(|bytes| frames.sends(bytes));
                frames.read(&mut PING_FRAME.clone());
                assert_eq!(frames.pings.strikes(), strikes, "in pieces of {size}");
            }
        }
    }

    #[test]
    fn the_authority_is_repaired_wherever_reads_begin() {
        let block = b"\x83\x41\x0ahttp://a:1";
        let bytes = [&PING_FRAME[..], &headers(END_HEADERS, block), &PING_FRAME].concat();
        let payload = PING_FRAME.len() + HEAD_LEN;
        // A read may end anywhere but between the start of the block and the end of the scheme.
        for cut in (0..=payload).chain(payload + 3 + 7..=bytes.len()) {
            let mut bytes = bytes.clone();
            let (first, second) = bytes.split_at_mut(cut);
            let mut frames = frames();
            frames.read(first);
            frames.read(second);
            assert_eq!(bytes[payload + 3..payload + 13], *b"httpB--a:1", "cut at {cut}");
            assert_eq!(bytes[payload + 13..], PING_FRAME, "cut at {cut}");
        }
        // DATA is never touched.
        let mut data = headers(END_HEADERS, block);
        data[3] = 0;
        let before = data.clone();
        frames().read(&mut data);
        assert_eq!(data, before);
    }

    #[test]
    fn what_has_begun_and_not_ended_is_known() {
        let mut frames = frames();
        assert_eq!(frames.unfinished(), None);
        frames.read(&mut [0, 0]);
        let since = frames.unfinished().unwrap();
        frames.read(&mut [5, HEADERS, 0, 0, 0, 0, 1, 1, 2, 3]);
        assert_eq!(frames.unfinished(), Some(since), "still the same frame");
        frames.read(&mut [4, 5]);
        assert_eq!(frames.unfinished(), Some(since), "its header block goes on");
        frames.read(&mut [0, 0, 1, CONTINUATION, 0, 0, 0, 0, 1, 1]);
        assert_eq!(frames.unfinished(), Some(since));
        frames.read(&mut [0, 0, 1, CONTINUATION, END_HEADERS, 0, 0, 0, 1, 1]);
        assert_eq!(frames.unfinished(), None);
        assert_eq!(frames.header_bytes(), 7);
        // A frame that ends and another that begins in one read.
        frames.read(&mut PING_FRAME[..3].to_vec());
        let since = frames.unfinished().unwrap();
        std::thread::sleep(Duration::from_millis(2));
        frames.read(&mut [&PING_FRAME[3..], &PING_FRAME[..3]].concat());
        assert!(frames.unfinished().unwrap() > since);
    }
}
