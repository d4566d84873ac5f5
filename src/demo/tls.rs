//! TLS records, as far as an observer without keys can read them (RFC 8446, 5.1): a type, a version,
//! a length, and so many bytes.

/// Type, version (two bytes), length (two bytes).
const HEADER: usize = 5;
/// The largest record body: 2^14 plus 2048 for expansion, which TLS 1.2 allows (RFC 5246, 6.2.3).
const LARGEST_BODY: usize = 16_384 + 2_048;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// How many bytes of a stream were what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// Bytes of records, with their headers.
    pub tls: u64,
    /// Of these, bytes of application-data records.
    pub encrypted: u64,
    /// Bytes outside any record.
    pub clear: u64,
}

/// Follows one direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Framer {
    count: Count,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The beginning of a header, and whether it would be the stream's first.
    Header { seen: Vec<u8>, first: bool },
    /// Inside a record: what is left of it, and whether it is application data.
    Body { left: usize, encrypted: bool },
    /// Something that is no record has passed; from there on nothing can be called TLS.
    Clear,
}

impl Default for State {
    fn default() -> Self {
        State::Header { seen: Vec::new(), first: true }
    }
}

impl Framer {
    /// Takes in the bytes that come next.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.step(*byte);
        }
    }

    /// What has passed. The beginning of a header that may never be completed is clear text: two
    /// letters are no record.
    pub(super) fn count(&self) -> Count {
        let mut count = self.count;
        if let State::Header { seen, .. } = &self.state {
            count.clear += seen.len() as u64;
        }
        count
    }

    fn step(&mut self, byte: u8) {
        match &mut self.state {
            State::Clear => self.count.clear += 1,
            State::Body { left, encrypted } => {
                self.count.tls += 1;
                self.count.encrypted += u64::from(*encrypted);
                *left -= 1;
                if *left == 0 {
                    self.state = State::Header { seen: Vec::new(), first: false };
                }
            }
            State::Header { seen, first } => {
                seen.push(byte);
                let Ok(header) = <&[u8; HEADER]>::try_from(seen.as_slice()) else { return };
                self.state = match read_header(*header, *first) {
                    Some(body) => {
                        let encrypted = header[0] == APPLICATION_DATA;
                        self.count.tls += HEADER as u64;
                        self.count.encrypted += if encrypted { HEADER as u64 } else { 0 };
                        State::Body { left: body, encrypted }
                    }
                    None => {
                        self.count.clear += HEADER as u64;
                        State::Clear
                    }
                };
            }
        }
    }
}

/// The length of the body that follows; `None` when this is no header.
fn read_header([kind, major, minor, high, low]: [u8; HEADER], first: bool) -> Option<usize> {
    let body = usize::from(u16::from_be_bytes([high, low]));
    let known = match kind {
        // A stream starts with a handshake, or with an alert that refuses one.
        HANDSHAKE | ALERT => true,
        APPLICATION_DATA | CHANGE_CIPHER_SPEC => !first,
        _ => false,
    };
    // 3.1 to 3.3: every version since TLS 1.0 says one of these.
    let version = major == 3 && (1..=3).contains(&minor);
    (known && version && (1..=LARGEST_BODY).contains(&body)).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&[kind, 3, 3, length[0], length[1]], body].concat()
    }

    fn count(bytes: &[u8]) -> Count {
        let mut whole = Framer::default();
        whole.feed(bytes);
        let mut torn = Framer::default();
        bytes.chunks(1).for_each(|chunk| torn.feed(chunk));
        assert_eq!(whole.count(), torn.count(), "how bytes are cut into segments makes no difference");
        whole.count()
    }

    #[test]
    fn records_are_followed_to_their_last_byte() {
        let stream = [record(HANDSHAKE, &[1; 200]), record(APPLICATION_DATA, b"GET / HTTP/1.1")].concat();
        assert_eq!(count(&stream), Count { tls: 205 + 19, encrypted: 19, clear: 0 });
    }

    #[test]
    fn text_is_clear_from_the_first_byte() {
        assert_eq!(count(b"GET / HTTP/1.1\r\n"), Count { tls: 0, encrypted: 0, clear: 16 });
        assert_eq!(count(b"hi").clear, 2, "also when it is shorter than a header");
        assert_eq!(count(b"PRI * HTTP/2.0\r\n\r\nSM").clear, 20, "and when it is HTTP/2");
    }

    #[test]
    fn text_behind_a_handshake_is_clear() {
        let stream = [record(HANDSHAKE, &[1; 10]), b"GET / HTTP/1.1".to_vec()].concat();
        assert_eq!(count(&stream), Count { tls: 15, encrypted: 0, clear: 14 });
    }

    #[test]
    fn what_only_looks_like_a_record_is_not_one() {
        assert_eq!(count(&record(APPLICATION_DATA, b"first")).tls, 0, "no stream starts with data");
        assert_eq!(count(&[HANDSHAKE, 3, 3, 0, 0, 1]).tls, 0, "no record is empty");
        assert_eq!(count(&[HANDSHAKE, 3, 3, 0xff, 0xff, 1]).tls, 0, "or that long");
        assert_eq!(count(&[HANDSHAKE, 2, 0, 0, 1, 1]).tls, 0, "or of that version");
    }
}
