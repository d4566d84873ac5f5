//! Routes and routing rules as lines of text, for comparing what was with what is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage};
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::netlink::{collect, talk};
use crate::base::Fault;

/// Every route of every table and both families, one line each, sorted. Two lists are equal exactly
/// when routing is; what changes by itself (ages, use counts, cached routes) is left out.
///
/// # Errors
/// `ENM-N010` no netlink, `ENM-N011` the kernel refused.
pub async fn describe_routes() -> Result<Vec<String>, Fault> {
    let what = "list routes";
    let routes = talk(what, async |handle: Handle| {
        let v4 = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        let mut routes = collect(what, v4).await?;
        let v6 = handle.route().get(RouteMessageBuilder::<Ipv6Addr>::new().build()).execute();
        routes.extend(collect(what, v6).await?);
        Ok(routes)
    })
    .await?;
    let cached = |route: &&RouteMessage| route.header.flags.contains(RouteFlags::Cloned);
    let mut lines: Vec<String> = routes.iter().filter(|route| !cached(route)).map(describe_route).collect();
    lines.sort();
    Ok(lines)
}

/// Every routing rule of both families, one line each, in the kernel's order.
///
/// # Errors
/// As [`describe_routes`].
pub async fn describe_rules() -> Result<Vec<String>, Fault> {
    let what = "list routing rules";
    talk(what, async |handle: Handle| {
        let mut rules: Vec<RuleMessage> = collect(what, handle.rule().get(IpVersion::V4).execute()).await?;
        rules.extend(collect(what, handle.rule().get(IpVersion::V6).execute()).await?);
        let line = |rule: &RuleMessage| format!("{:?} {:?}", rule.header, rule.attributes);
        Ok(rules.iter().map(line).collect())
    })
    .await
}

fn describe_route(route: &RouteMessage) -> String {
    let header = &route.header;
    let mut target = None;
    let mut table = u32::from(header.table);
    let mut rest = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => target = Some(IpAddr::from(*address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                target = Some(IpAddr::from(*address))
            }
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::CacheInfo(_) => {}
            other => rest.push(format!("{other:?}")),
        }
    }
    rest.sort();
    let target = target.map_or_else(|| format!("{:?} default", header.address_family), |ip| ip.to_string());
    format!(
        "{target}/{} table {table} {:?} scope {:?} proto {:?} tos {} {}",
        header.destination_prefix_length,
        header.kind,
        header.scope,
        header.protocol,
        header.tos,
        rest.join(" ")
    )
}
