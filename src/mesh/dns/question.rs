//! A query as bytes, as far as it is changed on its way to another server and back.
//!
//! What is forwarded is not taken apart and put together again: whatever options it has reach the other
//! server, and whatever the answer has reaches the client.

/// Length of a message's header, in bytes.
const HEADER: usize = 12;

/// A query on its way to another server: with a number that nobody can guess, and the name in a mix of
/// upper and lower case that the answer has to repeat (draft-vixie-dnsext-dns0x20).
#[derive(Debug)]
pub(super) struct Question {
    /// What is sent.
    pub bytes: Vec<u8>,
    /// The head of the client's query: header and question.
    original: Vec<u8>,
}

/// How an answer fits a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// It is the answer.
    Yes,
    /// But for upper and lower case: a server that does not keep it, or somebody who guesses.
    NotCase,
    /// It is something else.
    No,
}

impl Question {
    /// The question of `query`; `None` when it has not exactly one, written out in full.
    pub fn of(query: &[u8]) -> Option<Question> {
        if query.get(4..6)? != [0, 1] {
            return None;
        }
        let mut at = HEADER;
        loop {
            match *query.get(at)? {
                0 => break,
                length @ 1..=63 => at += usize::from(length) + 1,
                // A pointer, which has nothing yet to point at.
                _ => return None,
            }
        }
        let original = query.get(..at + 5)?.to_vec();
        let mut bytes = query.to_vec();
        let (head, name) = bytes.split_at_mut_checked(HEADER)?;
        head.get_mut(..2)?.copy_from_slice(&rand::random::<[u8; 2]>());
        // Type and class behind the name stay as they are; lengths are below the letters.
        for byte in name.get_mut(..at - HEADER)?.iter_mut().filter(|byte| byte.is_ascii_alphabetic()) {
            *byte = if rand::random() { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() };
        }
        Some(Question { bytes, original })
    }

    /// The name, type and class, by which the same question of two clients is known.
    pub fn key(&self) -> Vec<u8> {
        self.original.get(HEADER..).unwrap_or_default().to_ascii_lowercase()
    }

    /// Whether `answer` is one to this question.
    pub fn fit(&self, answer: &[u8]) -> Fit {
        let end = self.original.len();
        let is_answer = answer.get(2).is_some_and(|flags| flags & 0x80 != 0);
        let one = answer.get(4..6) == Some(&[0, 1]);
        let (Some(sent), Some(got)) = (self.bytes.get(HEADER..end), answer.get(HEADER..end)) else {
            return Fit::No;
        };
        if !is_answer || !one || answer.get(..2) != self.bytes.get(..2) {
            Fit::No
        } else if sent == got {
            Fit::Yes
        } else if sent.eq_ignore_ascii_case(got) {
            Fit::NotCase
        } else {
            Fit::No
        }
    }

    /// An answer that fits, with the client's own number and writing.
    pub fn back(&self, mut answer: Vec<u8>) -> Vec<u8> {
        for range in [0..2, HEADER..self.original.len()] {
            if let (Some(to), Some(from)) = (answer.get_mut(range.clone()), self.original.get(range)) {
                to.copy_from_slice(from);
            }
        }
        answer
    }

    /// What stands in the place of an answer of more than `limit` bytes: that it was cut off.
    pub fn cut(&self, answer: Vec<u8>, limit: usize) -> Vec<u8> {
        if answer.len() <= limit {
            return answer;
        }
        let mut short = answer.get(..self.original.len()).unwrap_or_default().to_vec();
        if let Some(flags) = short.get_mut(2) {
            *flags |= 0x02;
        }
        if let Some(counts) = short.get_mut(6..HEADER) {
            counts.fill(0);
        }
        short
    }
}

/// Whether a message was cut off.
pub(super) fn is_cut(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// Whether a server says that it cannot answer (SERVFAIL, NOTIMP, REFUSED), so that another is asked.
pub(super) fn is_no_answer(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|flags| matches!(flags & 0x0f, 2 | 4 | 5))
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, MessageType, Query};
    use hickory_proto::rr::{Name, RecordType};
    use proptest::prelude::*;

    use super::*;

    fn query(name: &str) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    fn answer_to(query: &[u8]) -> Vec<u8> {
        let mut message = Message::from_vec(query).unwrap();
        message.metadata.message_type = MessageType::Response;
        message.to_vec().unwrap()
    }

    #[test]
    fn an_answer_has_the_number_and_the_name_that_were_sent() {
        let asked = query("A-rather-long-Name.service.consul.");
        let question = Question::of(&asked).unwrap();
        let answer = answer_to(&question.bytes);
        assert_eq!(question.fit(&answer), Fit::Yes);
        assert_eq!(question.back(answer.clone()), answer_to(&asked));
        let mut other = answer.clone();
        other[0] ^= 1;
        assert_eq!(question.fit(&other), Fit::No, "another number");
        assert_eq!(question.fit(&question.bytes), Fit::No, "a query");
        let mut other = answer.clone();
        other[15] ^= 0x20;
        assert_eq!(question.fit(&other), Fit::NotCase);
        other[15] = b'z';
        assert_eq!(question.fit(&other), Fit::No, "another name");
        assert_eq!(question.fit(&answer[..20]), Fit::No);
    }

    #[test]
    fn numbers_and_case_are_not_to_be_guessed() {
        let asked = query("a-rather-long-name.service.consul.");
        let sent: std::collections::BTreeSet<Vec<u8>> =
            (0..100).map(|_| Question::of(&asked).unwrap().bytes).collect();
        assert!(sent.len() >= 99);
        let names: std::collections::BTreeSet<&[u8]> = sent.iter().map(|bytes| &bytes[12..]).collect();
        assert!(names.len() >= 99);
        assert_eq!(
            Question::of(&asked).unwrap().key(),
            Question::of(&query("A-RATHER-long-name.service.consul.")).unwrap().key()
        );
    }

    #[test]
    fn what_is_too_long_is_cut_off_behind_the_question() {
        let asked = query("a.example.");
        let question = Question::of(&asked).unwrap();
        let mut long = answer_to(&asked);
        long.extend([0; 600]);
        assert_eq!(question.cut(long.clone(), 4096), long);
        let short = question.cut(long, 512);
        let message = Message::from_vec(&short).unwrap();
        assert!(message.metadata.truncation && is_cut(&short) && message.answers.is_empty());
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(query in prop::collection::vec(any::<u8>(), 0..80), answer in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(question) = Question::of(&query) {
                prop_assert_eq!(question.bytes.len(), query.len());
                let _ = (question.fit(&answer), question.key(), question.cut(answer.clone(), 20));
                let _ = question.back(answer);
            }
        }
    }
}
