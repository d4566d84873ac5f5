//! Why each rule exists, by its comment.

/// The reason for the rule with this comment in this chain; empty for one that decides nothing.
pub(super) fn of(chain: &str, comment: &str) -> &'static str {
    let comment = comment.strip_suffix(", IPv6").unwrap_or(comment);
    match chain {
        "in" | "guard_in" => inbound(comment),
        _ => outbound(comment),
    }
}

fn outbound(comment: &str) -> &'static str {
    match comment {
        "bypassed users" => "this user is never captured: sidecars, Consul, and whom `bypass.uids` names",
        "sidecars" => "sidecars carry the mesh's own traffic",
        "connections that run already" => "only new connections are redirected, so that running ones live on",
        "our resolver" => "what enmesh's resolver asks on behalf of others must not come back to it",
        "DNS" => {
            "`dns = \"redirect\"`: the resolver here knows the names of the mesh, and gets queries while it lives"
        }
        "enmesh itself" => "no sidecar becomes live without what enmesh asks Consul for",
        "only TCP is captured" => "the mesh carries TCP",
        "users that are not captured" => "no service has this user in its scope",
        "networks of no mesh" => "loopback, link-local and the cloud's metadata are never captured",
        "own addresses" => "the host's own addresses are reached without the mesh",
        "DNS over TCP" => "names have to be found before any sidecar runs",
        "a user's bypassed ports" | "the host's bypassed ports" => "`bypass.outbound_ports` of the service",
        "a user's bypassed networks" | "the host's bypassed networks" => {
            "`bypass.outbound_cidrs` of the service"
        }
        "users of other services" => "this user belongs to another service, and its policy alone counts",
        "users with IPv6 allowed" | "IPv6 is allowed" => "`ipv6 = \"allow\"`: IPv6 is not the mesh's matter",
        "users with IPv6 refused" | "IPv6 is refused" => {
            "`ipv6 = \"refuse\"`: the application is to use IPv4"
        }
        "IPv6 is not redirected" => "`ipv6` of the service is `allow` or `refuse`",
        "to the user's sidecar" => "the service has this user in its scope, and its sidecar is live",
        "to the host's sidecar" => "a service captures the whole host, and its sidecar is live",
        "users whose sidecar is not live" => {
            "this user's own sidecar is not live, and must not be stood in for by another service's"
        }
        "virtual IPs" => "virtual IPs exist only in the mesh: an error at once is better than a timeout",
        "limited broadcast" => "255.255.255.255 reaches whoever is on the link, and is nobody's virtual IP",
        "sealed users" | "the host is sealed" => {
            "`on_proxy_failure = \"sealed\"`: nothing goes out while the sidecar is not live"
        }
        "users, to the mesh" | "the host, to the mesh" => {
            "`on_proxy_failure = \"closed\"`: what belongs into the mesh does not go out in the clear while the \
             sidecar is not live"
        }
        _ => "",
    }
}

fn inbound(comment: &str) -> &'static str {
    match comment {
        "from this host" => "what this host says to itself is not captured",
        "only TCP is captured" => "the mesh carries TCP",
        "connections that run already" => "only new connections are redirected, so that running ones live on",
        "forwarded" => {
            "the destination is not this host: traffic of containers and the like is only passed on"
        }
        "straight to a sidecar" | "to a sidecar" => "this is a sidecar's own port, where other sidecars call",
        "a port's bypassed interfaces" | "bypassed interfaces" => "`bypass.interfaces` of the service",
        "bypassed ports" => "`bypass.inbound_ports` of the service, or another service's own port",
        "Consul's agent" => {
            "other agents call the one of this host here: at 8300 to 8302, and at its API where `[consul]` names it by \
             an address that is not loopback's"
        }
        "ports with IPv6 allowed" | "IPv6 is allowed" => "`ipv6 = \"allow\"`: IPv6 is not the mesh's matter",
        "ports with IPv6 refused" | "IPv6 is refused" => "`ipv6 = \"refuse\"`: callers are to use IPv4",
        "IPv6 is not redirected" => "`ipv6` of the service is `allow` or `refuse`",
        "to the port's sidecar" => "the port is a service's, and its sidecar is live",
        "to the host's sidecar" => "a service captures all ports, and its sidecar is live",
        "services' ports in the clear" | "all ports in the clear" => {
            "`on_proxy_failure` of the service: it is not reached in the clear while its sidecar is not live"
        }
        _ => "",
    }
}
