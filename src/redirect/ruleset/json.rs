//! A ruleset as the JSON that `nft -j -f -` takes, by the types of the crate `nftables`.

use std::collections::BTreeSet;

use nftables::batch::Batch;
use nftables::expr::{
    BinaryOperation, CT, CTDir, Elem, Expression, Fib, FibFlag, FibResult, Map, Meta, MetaKey,
    NamedExpression, Payload, PayloadField, Prefix, Range, SetItem,
};
use nftables::schema::{
    Chain as JsonChain, Element as JsonElement, Map as JsonMap, NfListObject, Rule as JsonRule,
    Set as JsonSet, SetFlag, SetType, SetTypeValue, Table,
};
use nftables::stmt::{
    JumpTarget, Mangle, Match, NAT, NATFamily, Operator, Reject, RejectType, Set as SetStatement, SetOp,
    Statement,
};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook, RejectCode};
use serde_json::Value as Json;

use super::change::Changes;
use super::trial::TRIAL;
use super::{
    Base, Chain, Element, Hook, Kind, NamedSet, Operand, Part, Rule, Ruleset, Selector, TABLE, Value,
};
use crate::plan::RESOLVER_LAPSE;

/// How many elements a set has room for that packets fill with their families. There are two, and for a
/// moment those that have lapsed and are not yet swept out, without whose places no new one gets in.
pub(super) const FAMILIES: u32 = 16;

/// One transaction that replaces the table whole: made, so that it is there to be deleted; deleted
/// with everything in it; made again.
pub(in crate::redirect) fn replace(ruleset: &Ruleset) -> Json {
    with_commands(remove_batch(), table_commands(ruleset))
}

/// One transaction that makes the table where there is none, and is refused where there is one. The
/// kernel takes some ten milliseconds longer for one that deletes anything (`synchronize_rcu`), so
/// the first one does not.
pub(in crate::redirect) fn create(ruleset: &Ruleset) -> Json {
    with_commands(Batch::new(), created().chain(table_commands(ruleset)).collect())
}

/// The same in two transactions, the first of which does nothing but fill the sets.
///
/// In the transaction that makes it the kernel lets rules count a moment before an interval set that they name
/// has its elements in it: whatever is an exception from what they refuse was refused then (seen in 15 of 1200 first
/// installs, Linux 6.18).
pub(in crate::redirect) fn create_sets_first(ruleset: &Ruleset) -> [Json; 2] {
    let sets = created().chain(ruleset.sets.iter().flat_map(set_commands));
    let chains = ruleset.chains.iter().map(|chain| command(chain_object(chain)));
    let rules = chains.chain(ruleset.chains.iter().flat_map(rule_commands));
    [with_commands(Batch::new(), sets.collect()), with_commands(Batch::new(), rules.collect())]
}

fn created() -> impl Iterator<Item = Json> {
    std::iter::once(serde_json::json!({ "create": NfListObject::Table(table()) }))
}

fn table_commands(ruleset: &Ruleset) -> Vec<Json> {
    let mut commands = vec![command(NfListObject::Table(table()))];
    commands.extend(ruleset.chains.iter().map(|chain| command(chain_object(chain))));
    commands.extend(ruleset.sets.iter().flat_map(set_commands));
    commands.extend(ruleset.chains.iter().flat_map(rule_commands));
    commands
}

/// One transaction after which the table is not there, whether it was or not.
pub(in crate::redirect) fn remove() -> Json {
    with_commands(remove_batch(), Vec::new())
}

/// What has to be in the kernel before [`change`] is carried out: interval sets that rules will name and that are
/// new, for the reason of [`create_sets_first`].
pub(in crate::redirect) fn before_change(old: &Ruleset, new: &Ruleset) -> Option<Json> {
    let changes = Changes::between(old, new);
    let commands: Vec<Json> = changes.early_sets.iter().flat_map(|set| set_commands(set)).collect();
    (!commands.is_empty()).then(|| with_commands(Batch::new(), commands))
}

/// One transaction that makes `old`, with what [`before_change`] added, into `new` and touches nothing that stays.
///
/// A replaced table has new base chains, and a packet that passes from the new chain to the old
/// one just as the generation changes sees the rules of neither (seen once in 250 replacements
/// under load). Chains that stay are emptied and filled instead, which the kernel does in one step
/// for whoever is in them, and so are sets and maps, element by element.
pub(in crate::redirect) fn change(old: &Ruleset, new: &Ruleset) -> Json {
    let changes = Changes::between(old, new);
    let mut commands = Vec::new();
    commands.extend(changes.emptied.iter().map(|chain| on_chain("flush", chain)));
    commands.extend(changes.gone_chains.iter().map(|chain| on_chain("delete", chain)));
    commands.extend(changes.gone_sets.iter().map(|set| on_set("delete", set)));
    commands.extend(changes.new_chains.iter().map(|chain| command(chain_object(chain))));
    commands.extend(changes.new_sets.iter().flat_map(|set| set_commands(set)));
    for (old, new) in &changes.elements {
        let missing = |from: &NamedSet, than: &NamedSet| {
            let there: BTreeSet<&Element> = than.elements.iter().collect();
            let elements = from.elements.iter().filter(|element| !there.contains(element));
            elements.map(element).collect::<Vec<_>>()
        };
        for (verb, elements) in [("delete", missing(old, new)), ("add", missing(new, old))] {
            let parts = new.parts_of(&elements);
            commands.extend(parts.filter_map(|part| element_command(verb, new.name, part.to_vec())));
        }
    }
    commands.extend(changes.filled.iter().flat_map(|chain| rule_commands(chain)));
    with_commands(Batch::new(), commands)
}

/// `document`, and then `seconds` for the rules on trial: however often it is carried out, their time
/// is over when it is.
pub(in crate::redirect) fn with_time(mut document: Json, seconds: u64) -> Json {
    let element = |family: &str| serde_json::json!({ "elem": { "val": family, "timeout": seconds } });
    let set = serde_json::json!({ "family": "inet", "table": TABLE, "name": TRIAL });
    let mut commands = vec![serde_json::json!({ "flush": { "set": &set } })];
    if seconds > 0 {
        let mut elements = set;
        if let Some(fields) = elements.as_object_mut() {
            fields.insert("elem".to_owned(), Json::from(vec![element("ipv4"), element("ipv6")]));
        }
        commands.push(serde_json::json!({ "add": { "element": elements } }));
    }
    if let Some(all) = document.get_mut("nftables").and_then(Json::as_array_mut) {
        all.extend(commands);
    }
    document
}

/// Nothing: a transaction to add to.
pub(in crate::redirect) fn nothing() -> Json {
    with_commands(Batch::new(), Vec::new())
}

fn remove_batch() -> Batch<'static> {
    let mut batch = Batch::new();
    batch.add(NfListObject::Table(table()));
    batch.delete(NfListObject::Table(table()));
    batch
}

fn with_commands(batch: Batch<'_>, more: Vec<Json>) -> Json {
    let mut document = serde_json::to_value(batch.to_nftables()).unwrap_or_default();
    if let Some(commands) = document.get_mut("nftables").and_then(Json::as_array_mut) {
        commands.extend(more);
    }
    document
}

fn on_chain(verb: &str, chain: &Chain) -> Json {
    serde_json::json!({ verb: { "chain": { "family": "inet", "table": TABLE, "name": chain.name } } })
}

fn on_set(verb: &str, set: &NamedSet) -> Json {
    let kind = if set.value.is_some() { "map" } else { "set" };
    serde_json::json!({ verb: { kind: { "family": "inet", "table": TABLE, "name": set.name } } })
}

fn command(object: NfListObject<'_>) -> Json {
    serde_json::json!({ "add": object })
}

fn table() -> Table<'static> {
    Table { family: NfFamily::INet, name: TABLE.into(), handle: None }
}

fn chain_object(chain: &Chain) -> NfListObject<'static> {
    let mut object = JsonChain {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: chain.name.into(),
        ..JsonChain::default()
    };
    if let Some(Base { nat, hook, priority }) = chain.base {
        object._type = Some(if nat { NfChainType::NAT } else { NfChainType::Filter });
        object.hook = Some(match hook {
            Hook::Prerouting => NfHook::Prerouting,
            Hook::Input => NfHook::Input,
            Hook::Output => NfHook::Output,
        });
        object.prio = Some(priority);
        object.policy = Some(NfChainPolicy::Accept);
    }
    NfListObject::Chain(object)
}

/// The crate (0.6) has no word for the type `uid`, so the types are written over what it made.
fn set_command(set: &NamedSet) -> Json {
    let flags = match (set.interval, set.dynamic()) {
        (true, _) => Some([SetFlag::Interval].into_iter().collect()),
        // It is `dynamic` by the rule that fills it; nft 1.0 does not take the word in JSON.
        (_, true) => Some([SetFlag::Timeout].into_iter().collect()),
        (false, false) => None,
    };
    let elem = set.parts().next().map(|part| part.iter().map(element).collect::<Vec<_>>().into());
    let stand_in = SetTypeValue::Single(SetType::Mark);
    let object = match set.value {
        None => NfListObject::Set(Box::new(JsonSet {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: set.name.into(),
            set_type: stand_in,
            flags,
            elem,
            size: set.dynamic().then_some(FAMILIES),
            ..JsonSet::default()
        })),
        Some(_) => NfListObject::Map(Box::new(JsonMap {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: set.name.into(),
            set_type: stand_in.clone(),
            map: stand_in,
            flags,
            elem,
            ..JsonMap::default()
        })),
    };
    let mut command = command(object);
    let words: Vec<Json> = set.key.iter().map(|kind| kind.word().into()).collect();
    let types = match words.as_slice() {
        [one] => one.clone(),
        _ => Json::Array(words),
    };
    let place = if set.value.is_some() { "/add/map" } else { "/add/set" };
    if let Some(object) = command.pointer_mut(place).and_then(Json::as_object_mut) {
        object.insert("type".to_owned(), types);
        if let Some(value) = set.value.map(Kind::word) {
            object.insert("map".to_owned(), value.into());
        }
    }
    command
}

/// A set, and the elements that do not go in with it.
fn set_commands(set: &NamedSet) -> impl Iterator<Item = Json> {
    let more = set.parts().skip(1);
    let more = more
        .filter_map(|part| element_command("add", set.name, part.iter().map(element).collect::<Vec<_>>()));
    std::iter::once(set_command(set)).chain(more)
}

fn element_command(verb: &str, set: &'static str, elem: Vec<Expression<'static>>) -> Option<Json> {
    let object = (!elem.is_empty()).then(|| {
        NfListObject::Element(JsonElement {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: set.into(),
            elem: elem.into(),
        })
    });
    object.map(|object| serde_json::json!({ verb: object }))
}

fn element(element: &Element) -> Expression<'static> {
    let mut values: Vec<_> = element.key.iter().map(value).collect();
    let key = match values.pop() {
        Some(one) if values.is_empty() => one,
        last => {
            values.extend(last);
            Expression::Named(NamedExpression::Concat(values))
        }
    };
    match element.to {
        None => key,
        Some(port) => Expression::List(vec![key, number(port)]),
    }
}

fn value(value: &Value) -> Expression<'static> {
    match value {
        Value::Uid(uid) => Expression::Number(*uid),
        Value::Ports(first, last) if first == last => number(*first),
        Value::Ports(first, last) => range(number(*first), number(*last)),
        Value::Address(address) => text(address),
        Value::Net(net) if net.prefix_len() == net.max_prefix_len() => text(net.addr()),
        Value::Net(net) => Expression::Named(NamedExpression::Prefix(Prefix {
            addr: Box::new(text(net.addr())),
            len: u32::from(net.prefix_len()),
        })),
        Value::Interface(name) => text(name),
        Value::Tcp => text("tcp"),
    }
}

fn number(number: u16) -> Expression<'static> {
    Expression::Number(u32::from(number))
}

fn text(text: impl ToString) -> Expression<'static> {
    Expression::String(text.to_string().into())
}

fn range(first: Expression<'static>, last: Expression<'static>) -> Expression<'static> {
    Expression::Range(Box::new(Range { range: [first, last] }))
}

fn rule_commands(chain: &Chain) -> impl Iterator<Item = Json> {
    chain.rules.iter().map(|rule| command(rule_object(chain.name, rule)))
}

fn rule_object(chain: &'static str, rule: &Rule) -> NfListObject<'static> {
    NfListObject::Rule(JsonRule {
        family: NfFamily::INet,
        table: TABLE.into(),
        chain: chain.into(),
        expr: rule.parts.iter().map(statement).collect::<Vec<_>>().into(),
        comment: Some(rule.comment.clone().into()),
        ..JsonRule::default()
    })
}

fn statement(part: &Part) -> Statement<'static> {
    match part {
        Part::Is(left, right) => comparison(left, right, equality(left)),
        Part::IsNot(left, right) => comparison(left, right, Operator::NEQ),
        Part::NotOpening => Statement::Match(Match {
            left: Expression::BinaryOperation(Box::new(BinaryOperation::AND(
                payload("tcp", "flags"),
                Expression::List(["fin", "syn", "rst", "ack"].map(text).to_vec()),
            ))),
            right: text("syn"),
            op: Operator::NEQ,
        }),
        Part::Accept => Statement::Accept(None),
        Part::Return => Statement::Return(None),
        Part::Jump(chain) => Statement::Jump(JumpTarget { target: (*chain).into() }),
        Part::Goto(chain) => Statement::Goto(JumpTarget { target: (*chain).into() }),
        Part::Reset => Statement::Reject(Some(Reject::new(Some(RejectType::TCPReset), None))),
        Part::Prohibit => {
            Statement::Reject(Some(Reject::new(Some(RejectType::ICMPX), Some(RejectCode::AdminProhibited))))
        }
        Part::Redirect(key, map) => Statement::Redirect(Some(NAT {
            addr: None,
            family: None,
            port: Some(Expression::Named(NamedExpression::Map(Box::new(Map {
                key: selector(*key),
                data: text(format!("@{map}")),
            })))),
            flags: None,
        })),
        Part::Dnat(to) => Statement::DNAT(Some(NAT {
            addr: Some(text(to.ip())),
            family: Some(if to.is_ipv4() { NATFamily::IP } else { NATFamily::IP6 }),
            port: Some(number(to.port())),
            flags: None,
        })),
        Part::Remember(set) => Statement::Set(SetStatement {
            op: SetOp::Update,
            elem: Expression::Named(NamedExpression::Elem(Elem {
                val: Box::new(meta(MetaKey::Nfproto)),
                timeout: Some(RESOLVER_LAPSE),
                expires: None,
                comment: None,
                counter: None,
            })),
            set: format!("@{set}").into(),
        }),
        Part::Zone(zone) => Statement::Mangle(Mangle { key: conntrack("zone"), value: number(*zone) }),
        Part::ZoneOfQuery(zone) => {
            let key = Expression::Named(NamedExpression::CT(CT {
                key: "zone".into(),
                family: None,
                dir: Some(CTDir::Original),
            }));
            Statement::Mangle(Mangle { key, value: number(*zone) })
        }
    }
}

/// Bit sets are compared by "has any of".
fn equality(left: &[Selector]) -> Operator {
    if left == [Selector::ConnectionStatus] { Operator::IN } else { Operator::EQ }
}

fn comparison(left: &[Selector], right: &Operand, op: Operator) -> Statement<'static> {
    let mut parts: Vec<_> = left.iter().copied().map(selector).collect();
    let left = match parts.pop() {
        Some(one) if parts.is_empty() => one,
        last => {
            parts.extend(last);
            Expression::Named(NamedExpression::Concat(parts))
        }
    };
    let right = match right {
        Operand::Set(name) => text(format!("@{name}")),
        Operand::Word(word) => text(word),
        Operand::Words(words) => Expression::Named(NamedExpression::Set(
            words.iter().map(|word| SetItem::Element(text(word))).collect(),
        )),
        Operand::Number(one) => number(*one),
        Operand::Mark(mark) => Expression::Number(*mark),
        Operand::Address(address) => text(address),
    };
    Statement::Match(Match { left, right, op })
}

fn selector(selector: Selector) -> Expression<'static> {
    match selector {
        Selector::SocketUid => meta(MetaKey::Skuid),
        Selector::TcpDestination => payload("tcp", "dport"),
        Selector::UdpDestination => payload("udp", "dport"),
        Selector::UdpSource => payload("udp", "sport"),
        Selector::AnyDestination => payload("th", "dport"),
        Selector::Ip4Source => payload("ip", "saddr"),
        Selector::Ip4Destination => payload("ip", "daddr"),
        Selector::Ip6Destination => payload("ip6", "daddr"),
        Selector::InputInterface => meta(MetaKey::Iifname),
        Selector::OutputInterface => meta(MetaKey::Oifname),
        Selector::Protocol => meta(MetaKey::L4proto),
        Selector::Family => meta(MetaKey::Nfproto),
        Selector::Mark => meta(MetaKey::Mark),
        Selector::DestinationType => Expression::Named(NamedExpression::Fib(Fib {
            result: FibResult::Type,
            flags: [FibFlag::Daddr].into_iter().collect(),
        })),
        Selector::ConnectionStatus => conntrack("status"),
    }
}

fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(PayloadField {
        protocol: protocol.into(),
        field: field.into(),
    })))
}

fn conntrack(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir: None }))
}
