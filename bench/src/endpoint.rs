//! Where a member is.

use std::fmt;

use tokio::net::TcpStream;

use crate::failure::{Failure, Trouble};

/// A member's client URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `host:port`.
    authority: String,
}

impl Endpoint {
    /// Reads `http://host:port`, or the same without its scheme, as etcdctl
    /// takes it.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(url: &str) -> Result<Self, Failure> {
        let wrong = || {
            Failure::new(
                format!("`{}` is not a member's address", url.escape_debug()),
                "write --endpoints as http://host:port, separated by commas",
            )
        };
        let authority = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
        let (host, port) = authority.rsplit_once(':').ok_or_else(wrong)?;
        let is_host = !host.is_empty() && !host.contains(['/', '@', '?', '#']);
        match port.parse::<u16>() {
            Ok(port) if is_host && port != 0 => Ok(Self { authority: authority.to_owned() }),
            _ => Err(wrong()),
        }
    }

    /// `host:port`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// A connection to it.
    ///
    /// # Errors
    /// When there is none.
    pub async fn connect(&self) -> Result<TcpStream, Trouble> {
        let stream = TcpStream::connect(&self.authority).await.map_err(Trouble::broken)?;
        stream.set_nodelay(true).map_err(Trouble::broken)?;
        Ok(stream)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_urls_or_what_etcdctl_takes() {
        for url in ["http://127.0.0.1:2379", "127.0.0.1:2379", "http://[::1]:2379/"] {
            let endpoint = Endpoint::parse(url).expect(url);
            assert!(endpoint.authority().ends_with(":2379"), "{endpoint}");
        }
        for url in ["", "http://", "https://a:1", "a", "a:", "a:0", "a:70000", "http://a:1/path"] {
            assert!(Endpoint::parse(url).is_err(), "{url}");
        }
    }
}
