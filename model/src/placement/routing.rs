//! Traces of routing: which experts every layer chose for every token, in a file small enough to keep.
//!
//! ```text
//! 0   8 bytes  "bantamRT"
//! 8   u16      version, 1
//! 10  u16      layers with experts
//! 12  u16      experts of each
//! 14  u16      chosen by a token
//! 16  bytes    token after token, layer after layer: the chosen ones, a byte each where there are at most 256, else
//!              two; all numbers with their least byte first
//! ```
//!
//! There is no count of tokens: a recorder that is interrupted leaves a file that can be read but for its last token.

/// What stands first.
const MAGIC: &[u8; 8] = b"bantamRT";
const VERSION: u16 = 1;
const HEADER: usize = 16;
/// More of each are in no model.
const LAYERS_MAX: u16 = 4096;

/// What a trace is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routes {
    /// Layers with experts.
    pub layers: u16,
    /// Experts of each.
    pub experts: u16,
    /// Chosen by a token.
    pub chosen: u16,
}

/// Why bytes are no trace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// Another file.
    #[error("expected a routing trace, which begins with \"bantamRT\", found another file")]
    NotATrace,
    /// Written by a later version.
    #[error("expected a routing trace of version {VERSION}, found version {found}; record it again")]
    Version {
        /// The file's.
        found: u16,
    },
    /// Numbers that no model has.
    #[error(
        "expected 1 to {LAYERS_MAX} layers, and 1 or more experts of which a token is sent to no more than there are; \
         found {0:?}: the header is damaged, record it again"
    )]
    Routes(Routes),
    /// An expert that there is none of, or one that is chosen twice.
    #[error(
        "token {token}, layer {layer}: expected experts below {experts}, each once, found {found:?}; the file is \
         damaged, record it again"
    )]
    Expert {
        /// Which token.
        token: usize,
        /// Which layer.
        layer: usize,
        /// How many experts there are.
        experts: u16,
        /// What is there.
        found: Vec<u16>,
    },
}

/// A trace in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// What it is of.
    pub routes: Routes,
    chosen: Vec<u16>,
}

impl Routes {
    fn check(self) -> Result<Routes, TraceError> {
        let layers = (1..=LAYERS_MAX).contains(&self.layers);
        let chosen = (1..=self.experts).contains(&self.chosen);
        if layers && chosen { Ok(self) } else { Err(TraceError::Routes(self)) }
    }

    fn width(self) -> usize {
        if self.experts <= 256 { 1 } else { 2 }
    }

    fn header(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        for (at, word) in [VERSION, self.layers, self.experts, self.chosen].into_iter().enumerate() {
            header[8 + 2 * at..][..2].copy_from_slice(&word.to_le_bytes());
        }
        header
    }
}

impl Trace {
    /// A trace without tokens.
    pub fn new(routes: Routes) -> Result<Trace, TraceError> {
        Ok(Trace { routes: routes.check()?, chosen: Vec::new() })
    }

    /// Reads a file's bytes; a token that was not written whole is left out.
    pub fn parse(bytes: &[u8]) -> Result<Trace, TraceError> {
        let Some((header, body)) =
            bytes.split_at_checked(HEADER).filter(|(header, _)| header.starts_with(MAGIC))
        else {
            return Err(TraceError::NotATrace);
        };
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        if word(8) != VERSION {
            return Err(TraceError::Version { found: word(8) });
        }
        let routes = Routes { layers: word(10), experts: word(12), chosen: word(14) }.check()?;
        let mut trace = Trace { routes, chosen: Vec::new() };
        let token = routes.layers as usize * routes.chosen as usize * routes.width();
        let mut chosen = Vec::with_capacity(token / routes.width());
        for bytes in body.chunks_exact(token) {
            chosen.clear();
            match routes.width() {
                1 => chosen.extend(bytes.iter().map(|&byte| u16::from(byte))),
                _ => chosen.extend(bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))),
            }
            trace.push(&chosen)?;
        }
        Ok(trace)
    }

    /// Appends a token: the experts of all its layers, one layer after another.
    ///
    /// # Panics
    /// If they are not as many as the layers choose.
    pub fn push(&mut self, token: &[u16]) -> Result<(), TraceError> {
        let Routes { layers, experts, chosen } = self.routes;
        assert_eq!(token.len(), layers as usize * chosen as usize, "a token chooses in every layer");
        for (layer, found) in token.chunks_exact(chosen as usize).enumerate() {
            let twice = (1..found.len()).any(|at| found[..at].contains(&found[at]));
            if twice || found.iter().any(|&expert| expert >= experts) {
                let found = found.to_vec();
                return Err(TraceError::Expert { token: self.tokens(), layer, experts, found });
            }
        }
        self.chosen.extend_from_slice(token);
        Ok(())
    }

    /// How many tokens there are.
    pub fn tokens(&self) -> usize {
        self.chosen.len() / (self.routes.layers as usize * self.routes.chosen as usize)
    }

    /// What a layer chose for a token.
    pub fn of(&self, token: usize, layer: usize) -> &[u16] {
        let chosen = self.routes.chosen as usize;
        &self.chosen[(token * self.routes.layers as usize + layer) * chosen..][..chosen]
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let width = self.routes.width();
        let chosen = self.chosen.iter().flat_map(|expert| expert.to_le_bytes().into_iter().take(width));
        self.routes.header().into_iter().chain(chosen).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (experts, size) in [(8, 16 + 8), (300, 16 + 16)] {
            let mut trace = Trace::new(Routes { layers: 2, experts, chosen: 2 }).unwrap();
            trace.push(&[0, 7, 3, 1]).unwrap();
            trace.push(&[1, 2, 6, experts - 1]).unwrap();
            let bytes = trace.to_bytes();
            assert_eq!(bytes.len(), size);
            assert_eq!(Trace::parse(&bytes).unwrap(), trace);
            assert_eq!(trace.of(1, 0), [1, 2]);
            // The last token was not written whole.
            assert_eq!(Trace::parse(&bytes[..size - 1]).unwrap().tokens(), 1);
        }
    }

    #[test]
    fn damage_is_refused_with_its_place() {
        let mut trace = Trace::new(Routes { layers: 1, experts: 4, chosen: 2 }).unwrap();
        trace.push(&[0, 3]).unwrap();
        let sound = trace.to_bytes();
        let message = |at: usize, byte: u8| {
            let mut bytes = sound.clone();
            bytes[at] = byte;
            Trace::parse(&bytes).unwrap_err().to_string()
        };
        assert!(message(0, b'x').contains("another file"));
        assert!(message(8, 9).contains("found version 9"));
        for (at, byte) in [(10, 0), (11, 255), (12, 1), (14, 0), (14, 5)] {
            assert!(message(at, byte).contains("header is damaged"), "{at}");
        }
        for (at, byte) in [(16, 4), (16, 3)] {
            assert!(message(at, byte).contains("token 0, layer 0: expected experts below 4"), "{at}");
        }
        for end in 0..16 {
            assert_eq!(Trace::parse(&sound[..end]), Err(TraceError::NotATrace));
        }
    }
}
