//! What this room can run into.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::acl::{self, Right};
use crate::base::{Class, Explain, Fault};

/// An error of this room. `what` is the call, such as `GET /v1/agent/self at http://127.0.0.1:8500`;
/// no query, no body and no header is in it, so nothing secret.
#[derive(Debug, thiserror::Error)]
pub enum ConsulError {
    /// The address is none.
    #[error("{text:?} is not an address of Consul")]
    Address {
        /// As it was given.
        text: String,
    },
    /// Nobody listens there.
    #[error("nobody listens at {server}")]
    Refused {
        /// The address.
        server: String,
    },
    /// Nobody listens there, or rules of a sealed host refuse what has no mark.
    #[error("{server} refused the connection, which enmesh may not mark as its own")]
    Unmarked {
        /// The address.
        server: String,
    },
    /// The network does not lead there.
    #[error("{server} cannot be reached")]
    Unreachable {
        /// The address.
        server: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The name has no address.
    #[error("the name {host:?} of Consul's API cannot be resolved")]
    Name {
        /// The name.
        host: String,
        /// The resolver's answer.
        source: io::Error,
    },
    /// No answer in time.
    #[error("{what} was not answered within {limit:?}")]
    Timeout {
        /// The call.
        what: String,
        /// The time it had.
        limit: Duration,
    },
    /// The connection ended midway, or what came is not HTTP.
    #[error("{what}: the connection broke: {why}")]
    Broken {
        /// The call.
        what: String,
        /// How.
        why: String,
    },
    /// The answer has no end.
    #[error("{what} is answered with more than {limit} bytes")]
    TooLarge {
        /// The call.
        what: String,
        /// The most that is read.
        limit: usize,
    },
    /// A certificate or key file cannot be used.
    #[error("{} cannot be used for TLS: {why}", path.display())]
    TlsFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The server's certificate is from a CA that is not trusted.
    #[error("the certificate of {server} was issued by a CA that is not trusted")]
    UnknownCa {
        /// The address.
        server: String,
    },
    /// The server's certificate is for other names.
    #[error("the certificate of {server} is not for that name: {why}")]
    WrongName {
        /// The address.
        server: String,
        /// What it is for.
        why: String,
    },
    /// The server wants another client certificate, or one at all.
    #[error("{server} {}", if *given { "does not accept the client certificate" } else { "wants a client certificate" })]
    ClientCertificate {
        /// The address.
        server: String,
        /// Whether one is configured.
        given: bool,
    },
    /// The server's certificate is not valid now.
    #[error("the certificate of {server} is not valid at this time: {why}")]
    CertificateTime {
        /// The address.
        server: String,
        /// Which of its two ends.
        why: String,
    },
    /// HTTPS was spoken to something that does not.
    #[error("{server} does not speak TLS")]
    NotTls {
        /// The address.
        server: String,
    },
    /// Another failure of TLS.
    #[error("no TLS connection to {server}: {why}")]
    Tls {
        /// The address.
        server: String,
        /// Why.
        why: String,
    },
    /// HTTP was spoken to something that wants HTTPS.
    #[error("{server} wants HTTPS")]
    WantsTls {
        /// The address.
        server: String,
    },
    /// The token is missing where it should be, or is no token.
    #[error("the ACL token of {origin} cannot be used: {why}")]
    Token {
        /// Where it should come from.
        origin: String,
        /// Why not.
        why: String,
    },
    /// The token lacks a right.
    #[error("{what} is not permitted: {why}")]
    Denied {
        /// The call.
        what: String,
        /// Consul's own words.
        why: String,
    },
    /// Consul does not know the token.
    #[error("{what}: Consul does not know the ACL token")]
    UnknownToken {
        /// The call.
        what: String,
    },
    /// The bearer token for a login cannot be read.
    #[error("the bearer token {} cannot be used: {why}", path.display())]
    BearerFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Who brings the bearer token could not; its own words are all there is to say.
    #[error("{}", fault.message)]
    Bearer {
        /// What it said.
        fault: Box<Fault>,
    },
    /// The bearer token is good, and gives no rights.
    #[error("no binding rule of the auth method {method:?} fits the bearer token")]
    NoBindingRule {
        /// The auth method.
        method: String,
    },
    /// The bearer token is not what the auth method accepts.
    #[error("the auth method {method:?} does not accept the bearer token: {why}")]
    BearerRefused {
        /// The auth method.
        method: String,
        /// Consul's own words.
        why: String,
    },
    /// There is no such auth method.
    #[error("Consul has no auth method {method:?}")]
    NoAuthMethod {
        /// The auth method.
        method: String,
    },
    /// A session was not ended.
    #[error("the session {accessor} was not logged out: {why}")]
    Logout {
        /// The id of its token, which is no secret.
        accessor: String,
        /// Why not.
        why: String,
    },
    /// Consul has no ACLs.
    #[error("ACLs are switched off in this Consul")]
    AclsDisabled,
    /// The sessions cannot be kept.
    #[error("{}, which keeps the logins, cannot be used: {why}", path.display())]
    SessionFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Rights that are needed are missing.
    #[error("the ACL token lacks {}", listed(missing))]
    Rights {
        /// The missing ones.
        missing: Vec<Right>,
    },
    /// A call before the login.
    #[error("there is no login at Consul yet, so there is no ACL token to call it with")]
    NoSession,
    /// There is nothing of that name.
    #[error("{what}: not found{}{why}", if why.is_empty() { "" } else { ": " })]
    Missing {
        /// The call.
        what: String,
        /// Consul's own words.
        why: String,
    },
    /// A field that this Consul does not know.
    #[error("{what}: Consul does not know the field `{field}`")]
    UnknownField {
        /// The call.
        what: String,
        /// The field, as the HTTP API spells it.
        field: String,
    },
    /// Consul does not like what it was sent.
    #[error("{what} was refused: {why}")]
    BadRequest {
        /// The call.
        what: String,
        /// Consul's own words.
        why: String,
    },
    /// The servers have no leader, or the agent has no servers.
    #[error("{what}: {why}")]
    NoLeader {
        /// The call.
        what: String,
        /// Consul's own words.
        why: String,
    },
    /// There is no such datacenter.
    #[error("{what}: Consul knows no way to the datacenter")]
    NoDatacenter {
        /// The call.
        what: String,
    },
    /// Consul limits the rate.
    #[error("{what}: Consul is asked too often")]
    Busy {
        /// The call.
        what: String,
    },
    /// An exec check over the API, which the agent does not allow.
    #[error("{what}: the agent does not take exec checks over its API")]
    Scripts {
        /// The call.
        what: String,
    },
    /// Any other status.
    #[error("{what} was answered with {status}: {why}")]
    Failed {
        /// The call.
        what: String,
        /// The HTTP status.
        status: u16,
        /// Consul's own words.
        why: String,
    },
    /// The answer points elsewhere.
    #[error("{what} is redirected to {to:?}")]
    Redirect {
        /// The call.
        what: String,
        /// Where to.
        to: String,
    },
    /// The answer is not what this call answers.
    #[error("{what} was answered with something that is not Consul's: {why}")]
    Answer {
        /// The call.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A registration that Consul would refuse, or take and choke on.
    #[error("the registration of {service:?} cannot be sent: {why}")]
    Invalid {
        /// The service's id.
        service: String,
        /// What is wrong with it.
        why: String,
    },
    /// The node does not exist, and the token may not make it.
    #[error("the node {node:?} is not in the catalog, and the token may not put it there")]
    Node {
        /// Its name.
        node: String,
    },
    /// Asked of the recording double.
    #[error("{0}")]
    Told(String),
}

/// Rules of a policy in one line.
fn listed(rights: &[Right]) -> String {
    rights.iter().map(Right::to_string).collect::<Vec<_>>().join("; ")
}

impl ConsulError {
    /// Whether the same call may well succeed in a moment.
    pub fn is_transient(&self) -> bool {
        match self {
            ConsulError::Refused { .. }
            | ConsulError::Unmarked { .. }
            | ConsulError::Unreachable { .. }
            | ConsulError::Name { .. }
            | ConsulError::Timeout { .. }
            | ConsulError::Broken { .. }
            | ConsulError::NoLeader { .. }
            | ConsulError::Busy { .. } => true,
            ConsulError::Failed { status, .. } => *status >= 500,
            _ => false,
        }
    }
}

impl Explain for ConsulError {
    fn code(&self) -> &'static str {
        match self {
            ConsulError::Address { .. } => "ENM-K001",
            ConsulError::Refused { .. } => "ENM-K002",
            ConsulError::Unmarked { .. } => "ENM-K008",
            ConsulError::Unreachable { .. } => "ENM-K003",
            ConsulError::Name { .. } => "ENM-K004",
            ConsulError::Timeout { .. } => "ENM-K005",
            ConsulError::Broken { .. } => "ENM-K006",
            ConsulError::TooLarge { .. } => "ENM-K007",
            ConsulError::TlsFile { .. } => "ENM-K010",
            ConsulError::UnknownCa { .. } => "ENM-K011",
            ConsulError::WrongName { .. } => "ENM-K012",
            ConsulError::ClientCertificate { .. } => "ENM-K013",
            ConsulError::CertificateTime { .. } => "ENM-K014",
            ConsulError::NotTls { .. } => "ENM-K015",
            ConsulError::Tls { .. } => "ENM-K016",
            ConsulError::WantsTls { .. } => "ENM-K017",
            ConsulError::Token { .. } => "ENM-K020",
            ConsulError::Denied { .. } => "ENM-K021",
            ConsulError::UnknownToken { .. } => "ENM-K022",
            ConsulError::Missing { .. } => "ENM-K024",
            ConsulError::UnknownField { .. } => "ENM-K025",
            ConsulError::BadRequest { .. } => "ENM-K026",
            ConsulError::NoLeader { .. } => "ENM-K027",
            ConsulError::NoDatacenter { .. } => "ENM-K028",
            ConsulError::Busy { .. } => "ENM-K029",
            ConsulError::Scripts { .. } => "ENM-K030",
            ConsulError::Failed { .. } => "ENM-K031",
            ConsulError::Redirect { .. } => "ENM-K032",
            ConsulError::Answer { .. } => "ENM-K033",
            ConsulError::Invalid { .. } => "ENM-K040",
            ConsulError::Node { .. } => "ENM-K041",
            ConsulError::Told(_) => "ENM-K042",
            ConsulError::BearerFile { .. } => "ENM-K065",
            ConsulError::Bearer { fault } => fault.code,
            ConsulError::NoBindingRule { .. } => "ENM-K066",
            ConsulError::BearerRefused { .. } => "ENM-K067",
            ConsulError::NoAuthMethod { .. } => "ENM-K068",
            ConsulError::NoSession => "ENM-K069",
            ConsulError::Logout { .. } => "ENM-K070",
            ConsulError::AclsDisabled => "ENM-K071",
            ConsulError::SessionFile { .. } => "ENM-K072",
            ConsulError::Rights { .. } => "ENM-K073",
        }
    }

    fn hint(&self) -> String {
        let text = match self {
            ConsulError::Address { .. } => "write http://HOST:PORT, https://HOST:PORT or unix:///PATH",
            ConsulError::Refused { .. } => {
                "is the agent running? `systemctl status consul`; its address is `[consul] address` or CONSUL_HTTP_ADDR"
            }
            ConsulError::Unmarked { .. } => {
                "is Consul running there? If so, rules of `on_proxy_failure = \"sealed\"` let nobody pass but enmesh with CAP_NET_ADMIN or CAP_NET_RAW, of which `SO_MARK` needs one"
            }
            ConsulError::Unreachable { .. } => {
                "look at routes and firewalls between this host and that address"
            }
            ConsulError::Name { .. } => "check `[consul] address` and this host's own name resolution",
            ConsulError::Timeout { .. } => {
                "Consul is overloaded or a firewall swallows packets; it is tried again"
            }
            ConsulError::Broken { .. } => "is it Consul's HTTP API that listens there? Its log says more",
            ConsulError::TooLarge { .. } => "is it Consul's HTTP API that listens there?",
            ConsulError::TlsFile { .. } => {
                "a PEM file that this user may read: certificates, or one private key"
            }
            ConsulError::UnknownCa { .. } => {
                "name the CA of Consul's API as `[consul] ca_file` or CONSUL_CACERT, or their folder as `ca_path`"
            }
            ConsulError::WrongName { .. } => {
                "set `[consul] tls_server_name` to a name that it is for, or issue one with this name"
            }
            ConsulError::ClientCertificate { given: false, .. } => {
                "set `[consul] cert_file` and `key_file`: the server verifies incoming connections"
            }
            ConsulError::ClientCertificate { given: true, .. } => {
                "use a client certificate of the CA that the server trusts, one that has not expired"
            }
            ConsulError::CertificateTime { .. } => {
                "check this host's clock, and renew the server's certificate"
            }
            ConsulError::NotTls { .. } => {
                "write http:// instead, or the port that Consul serves HTTPS on (8501)"
            }
            ConsulError::Tls { .. } => "the server's log says more",
            ConsulError::WantsTls { .. } => "write https:// in `[consul] address`",
            ConsulError::Token { .. } => "one line with the token's secret id, readable for this user",
            ConsulError::Denied { what, .. } => return acl::needed_for(what),
            ConsulError::UnknownToken { .. } => {
                "was it deleted, has it expired, is it from another datacenter? A new one takes seconds to spread"
            }
            ConsulError::Missing { .. } => "this Consul does not have it, or is too old for the call",
            ConsulError::UnknownField { .. } => "leave the field out, or use a newer Consul",
            ConsulError::BadRequest { .. } => "correct what Consul's words point at",
            ConsulError::NoLeader { .. } => {
                "wait for the servers to elect one; `consul operator raft list-peers` shows them"
            }
            ConsulError::NoDatacenter { .. } => {
                "check `[consul] datacenter`; `consul catalog datacenters` lists them"
            }
            ConsulError::Busy { .. } => "raise the limits of the agent or the servers; it is tried again",
            ConsulError::Scripts { .. } => {
                "set `enable_local_script_checks` for the agent and `registration = \"file\"`, or use another kind of check"
            }
            ConsulError::Failed { .. } => "Consul's own log says more",
            ConsulError::Redirect { .. } => {
                "name the address that answers by itself, without a proxy in between"
            }
            ConsulError::Answer { .. } => {
                "is it Consul's HTTP API that listens there, or a proxy in front of it?"
            }
            ConsulError::Invalid { .. } => "correct the service file",
            ConsulError::Node { .. } => {
                "let an operator make the node once (it takes `node:write`); enmesh then needs the service's rights only"
            }
            ConsulError::Bearer { fault } => return fault.hint.clone(),
            ConsulError::BearerFile { .. } => {
                "`[consul.login] bearer_token_file` holds one JWT and nothing else; does who brings it run?"
            }
            ConsulError::NoBindingRule { .. } => {
                "`consul acl binding-rule list`: one whose selector fits the token's claims has to bind the service"
            }
            ConsulError::BearerRefused { .. } => {
                "compare the token's issuer, audience, key and times with the auth method's, and both clocks"
            }
            ConsulError::NoAuthMethod { .. } => {
                "check `[consul.login] method`; `consul acl auth-method list` lists them"
            }
            ConsulError::Logout { accessor, .. } => {
                return format!(
                    "its token ends by itself, if the auth method says so; `consul acl token delete -id {accessor}` ends it now"
                );
            }
            ConsulError::AclsDisabled => "take `login` out of `[consul]`, or switch ACLs on in Consul",
            ConsulError::SessionFile { .. } => "can the user that enmesh runs as write there?",
            ConsulError::Rights { .. } => {
                "give the token a service identity of each service, or these rules as a policy"
            }
            ConsulError::NoSession => "why the login failed is said on its own; it is tried again",
            ConsulError::Told(_) => "nothing: no program gives this out",
        };
        text.to_owned()
    }

    fn class(&self) -> Class {
        match self {
            ConsulError::Bearer { fault } => fault.class,
            ConsulError::Address { .. }
            | ConsulError::TlsFile { .. }
            | ConsulError::Token { .. }
            | ConsulError::BearerFile { .. }
            | ConsulError::NoAuthMethod { .. }
            | ConsulError::AclsDisabled
            | ConsulError::Invalid { .. } => Class::Config,
            ConsulError::Denied { .. }
            | ConsulError::UnknownToken { .. }
            | ConsulError::Node { .. }
            | ConsulError::NoBindingRule { .. }
            | ConsulError::BearerRefused { .. }
            | ConsulError::Rights { .. } => Class::Privilege,
            ConsulError::UnknownField { .. }
            | ConsulError::BadRequest { .. }
            | ConsulError::Scripts { .. }
            | ConsulError::Failed { .. }
            | ConsulError::SessionFile { .. }
            | ConsulError::Told(_) => Class::Failed,
            _ => Class::Unavailable,
        }
    }
}
