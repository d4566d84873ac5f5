//! A ruleset as text that a person can read and `nft -f` can load.

use std::fmt::{self, Display, Write as _};

use super::json::FAMILIES;
use super::{
    Base, Chain, Element, Hook, KEPT, Kind, MARK_CHAIN, NamedSet, Operand, Part, Rule, Ruleset, Selector,
    TABLE, Value,
};
use crate::plan::RESOLVER_LAPSE;

/// Sets with no more elements than this stand on one line.
const SHORT: usize = 8;

/// One transaction that replaces the table whole.
pub(in crate::redirect) fn replace(ruleset: &Ruleset) -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n{ruleset}")
}

/// One transaction after which the table is not there.
pub(in crate::redirect) fn remove() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// Two transactions that make the table [`KEPT`], which belongs to whoever makes it, with the sets and then the chains
/// of `ruleset`, and `mark` as a comment. With `again` it is there and goes first.
pub(in crate::redirect) fn kept(ruleset: &Ruleset, mark: &str, again: bool) -> [String; 2] {
    let gone = if again { format!("delete table inet {KEPT}\n") } else { String::new() };
    let mark = Chain { name: MARK_CHAIN, base: None, rules: vec![Rule::new(mark, [Part::Return])] };
    let chains: Vec<&Chain> = ruleset.chains.iter().chain([&mark]).collect();
    let sets = Table { name: KEPT, flags: "\tflags owner\n\n", sets: &ruleset.sets, chains: Vec::new() };
    let chains = Table { name: KEPT, flags: "\tflags owner\n\n", sets: &[], chains };
    [format!("{gone}{sets}"), chains.to_string()]
}

impl Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Table { name: TABLE, flags: "", sets: &self.sets, chains: self.chains.iter().collect() }.fmt(f)
    }
}

struct Table<'a> {
    name: &'static str,
    flags: &'static str,
    sets: &'a [NamedSet],
    chains: Vec<&'a Chain>,
}

impl Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        write!(f, "table inet {name} {{\n{}", self.flags)?;
        for set in self.sets {
            writeln!(f, "{set}")?;
        }
        for (index, chain) in self.chains.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{chain}")?;
        }
        writeln!(f, "}}")?;
        for set in self.sets {
            for part in set.parts().skip(1) {
                writeln!(f, "add element inet {name} {} {}", set.name, braces(part, ""))?;
            }
        }
        Ok(())
    }
}

/// Elements in braces, on one line if they are few.
fn braces(elements: &[Element], indent: &str) -> String {
    let elements: Vec<String> = elements.iter().map(Element::to_string).collect();
    if elements.len() <= SHORT {
        return format!("{{ {} }}", elements.join(", "));
    }
    format!("{{\n{indent}\t{}\n{indent}}}", elements.join(&format!(",\n{indent}\t")))
}

impl Display for NamedSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.value.is_some() { "map" } else { "set" };
        let key: Vec<&str> = self.key.iter().copied().map(Kind::word).collect();
        write!(f, "\t{word} {} {{\n\t\ttype {}", self.name, key.join(" . "))?;
        if let Some(value) = self.value {
            write!(f, " : {}", value.word())?;
        }
        writeln!(f)?;
        if self.interval {
            writeln!(f, "\t\tflags interval")?;
        }
        if self.dynamic() {
            writeln!(f, "\t\tsize {FAMILIES}\n\t\tflags dynamic,timeout")?;
        }
        if let Some(first) = self.parts().next() {
            writeln!(f, "\t\telements = {}", braces(first, "\t\t"))?;
        }
        writeln!(f, "\t}}")
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key: Vec<String> = self.key.iter().map(Value::to_string).collect();
        f.write_str(&key.join(" . "))?;
        self.to.map_or(Ok(()), |port| write!(f, " : {port}"))
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Uid(uid) => uid.fmt(f),
            Value::Ports(first, last) if first == last => first.fmt(f),
            Value::Ports(first, last) => write!(f, "{first}-{last}"),
            Value::Address(address) => address.fmt(f),
            Value::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Value::Net(net) => net.fmt(f),
            Value::Interface(name) => write!(f, "\"{name}\""),
            Value::Tcp => f.write_str("tcp"),
        }
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(Base { nat, hook, priority }) = self.base {
            let kind = if nat { "nat" } else { "filter" };
            let hook = match hook {
                Hook::Prerouting => "prerouting",
                Hook::Input => "input",
                Hook::Output => "output",
            };
            writeln!(f, "\t\ttype {kind} hook {hook} priority {priority}; policy accept;")?;
        }
        for rule in &self.rules {
            let mut line = String::new();
            for part in &rule.parts {
                write!(line, "{part} ")?;
            }
            writeln!(f, "\t\t{line}comment \"{}\"", rule.comment)?;
        }
        writeln!(f, "\t}}")
    }
}

impl Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Is(left, right) => write!(f, "{} {right}", Left(left)),
            Part::IsNot(left, right) => write!(f, "{} != {right}", Left(left)),
            Part::NotOpening => f.write_str("tcp flags & (fin | syn | rst | ack) != syn"),
            Part::Accept => f.write_str("accept"),
            Part::Return => f.write_str("return"),
            Part::Jump(chain) => write!(f, "jump {chain}"),
            Part::Goto(chain) => write!(f, "goto {chain}"),
            Part::Reset => f.write_str("reject with tcp reset"),
            Part::Prohibit => f.write_str("reject with icmpx type admin-prohibited"),
            Part::Redirect(key, map) => write!(f, "redirect to :{key} map @{map}"),
            Part::Dnat(to) if to.is_ipv4() => write!(f, "dnat ip to {to}"),
            Part::Dnat(to) => write!(f, "dnat ip6 to {to}"),
            Part::Remember(set) => write!(f, "update @{set} {{ meta nfproto timeout {RESOLVER_LAPSE}s }}"),
            Part::Zone(zone) => write!(f, "ct zone set {zone}"),
            Part::ZoneOfQuery(zone) => write!(f, "ct original zone set {zone}"),
        }
    }
}

/// The left side of a comparison.
struct Left<'a>(&'a [Selector]);

impl Display for Left<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, selector) in self.0.iter().enumerate() {
            let dot = if index > 0 { " . " } else { "" };
            write!(f, "{dot}{selector}")?;
        }
        Ok(())
    }
}

impl Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Selector::SocketUid => "meta skuid",
            Selector::TcpDestination => "tcp dport",
            Selector::UdpDestination => "udp dport",
            Selector::UdpSource => "udp sport",
            Selector::AnyDestination => "th dport",
            Selector::Ip4Source => "ip saddr",
            Selector::Ip4Destination => "ip daddr",
            Selector::Ip6Destination => "ip6 daddr",
            Selector::InputInterface => "iifname",
            Selector::OutputInterface => "oifname",
            Selector::Protocol => "meta l4proto",
            Selector::Family => "meta nfproto",
            Selector::Mark => "meta mark",
            Selector::DestinationType => "fib daddr type",
            Selector::ConnectionStatus => "ct status",
        })
    }
}

impl Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operand::Set(name) => write!(f, "@{name}"),
            // In quotes only where nft wants them: the one interface that is named in a rule.
            Operand::Word("lo") => f.write_str("\"lo\""),
            Operand::Word(word) => f.write_str(word),
            Operand::Words(words) => write!(f, "{{ {} }}", words.join(", ")),
            Operand::Number(number) => number.fmt(f),
            Operand::Mark(mark) => write!(f, "{mark:#x}"),
            Operand::Address(address) => address.fmt(f),
        }
    }
}
