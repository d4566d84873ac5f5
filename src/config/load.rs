//! Files to [`Config`]. Nothing in here fails as a whole: what is wrong is collected.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::consul_rules;
use super::de;
use super::environment::{self, Described, Environment};
use super::error::{ConfigError, Problem};
use super::host_rules;
use super::legacy;
use super::node::{At, Node, Step};
use super::parse::{self, Broken, Format};
use super::rules;
use super::source;
use super::value::{Scope, ServiceId};
use super::{Config, ConsulConfig, HostConfig, Mode, ServiceConfig};
use crate::base::{Fault, Place, Root};

/// Where the host file, its drop-ins and the service files are.
const NATIVE: &str = "/etc/enmesh";
/// Where both legacy forms are.
const LEGACY: &str = "/srv/consul/service-config.json";

/// Reads the whole configuration below `root`; `env` answers for the environment.
///
/// Never fails as a whole: what is wrong stands in [`Config::errors`], and a file in error takes
/// nothing away from the others.
pub fn load(root: &Root, env: &dyn Fn(&str) -> Option<String>) -> Config {
    load_beside(root, env, &|_, _| false)
}

/// As [`load`]. Where two services collide, the file that sorts first wins, unless `in_force` says
/// only of the other one, by id and file, that it is in force: a newcomer drives nobody out.
pub fn load_beside(
    root: &Root,
    env: &dyn Fn(&str) -> Option<String>,
    in_force: &dyn Fn(&ServiceId, &Path) -> bool,
) -> Config {
    let mut loader = Loader { environment: Environment::read(env), ..Loader::default() };
    loader.environment_errors();
    loader.folder(&root.join(NATIVE));
    loader.legacy(&root.join(LEGACY));
    if let Some(node) = loader.environment.service.take() {
        loader.service_of(&node, Path::new(environment::NAME));
    }
    let (errors, warnings) = consul_rules::fill_from_environment(&mut loader.config.host.consul, env);
    loader.config.host_ok &= errors.is_empty();
    loader.config.errors.extend(errors);
    loader.config.warnings.extend(warnings);
    loader.loaded.sort_by_key(|loaded| !in_force(&loaded.service.id(), &loaded.service.source));
    loader.finish()
}

/// How to reach Consul as its own tools find it: from the `CONSUL_*` variables alone, which `env` answers
/// for. Returns what is wrong with them, too.
pub fn consul_from_environment(env: &dyn Fn(&str) -> Option<String>) -> (ConsulConfig, Vec<Fault>) {
    let mut consul = ConsulConfig::default();
    let (errors, _) = consul_rules::fill_from_environment(&mut consul, env);
    (consul, errors)
}

/// Whether `fault` is about a variable of the environment, which lasts as long as the process.
pub fn is_of_environment(fault: &Fault) -> bool {
    environment::is_of_environment(fault)
}

/// Every `ENMESH_*` variable that is read.
pub fn variables() -> Vec<Described> {
    environment::described()
}

/// Warnings about variables of the environment, by their names, that look like enmesh's own and are not.
pub fn unknown_variables(names: impl Iterator<Item = String>) -> Vec<Fault> {
    environment::unknown(names)
}

/// The files and folders whose change may change what [`load`] returns. They need not exist.
pub fn watched_paths(root: &Root) -> Vec<PathBuf> {
    let native = root.join(NATIVE);
    vec![native.join("enmesh.d"), native.join("services"), native, root.join(LEGACY)]
}

/// Reads whatever `path` is, without the environment: one service or host file, a folder of
/// service files, `etc/enmesh` itself, or a tree that holds it.
pub fn load_path(path: &Path) -> Config {
    let mut loader = Loader::default();
    if path.is_dir() {
        loader.any_folder(path);
    } else {
        loader.any_file(path);
    }
    if loader.config.sources.is_empty() && loader.config.errors.is_empty() {
        loader.error(ConfigError { problem: Problem::Nothing, place: Place::whole(path) }.into());
    }
    loader.finish()
}

/// A service that is good by itself, and where the things stand that others may collide with.
struct Loaded {
    service: ServiceConfig,
    id: At,
    scope: At,
}

#[derive(Default)]
struct Loader {
    config: Config,
    environment: Environment,
    loaded: Vec<Loaded>,
}

impl Loader {
    fn error(&mut self, fault: Fault) {
        self.config.errors.push(fault);
    }

    fn environment_errors(&mut self) {
        for error in std::mem::take(&mut self.environment.errors) {
            // Of which of the two it is, its variable's name says.
            self.host_error(error);
        }
    }

    /// The native configuration in `folder`, which is `etc/enmesh` somewhere.
    fn folder(&mut self, folder: &Path) {
        let mut hosts = vec![folder.join("enmesh.toml")];
        match source::list(&folder.join("enmesh.d"), &["toml"]) {
            Ok(listing) => {
                hosts.extend(listing.files);
                self.ignored(listing.ignored, "`.toml`");
            }
            Err(error) => {
                self.config.host_ok = false;
                self.error(error.into());
            }
        }
        self.host(&hosts);
        self.services(&folder.join("services"));
    }

    fn services(&mut self, folder: &Path) {
        match source::list(folder, &["toml", "json"]) {
            Ok(listing) => {
                for path in &listing.files {
                    self.service(path);
                }
                self.ignored(listing.ignored, "`.toml` and `.json`");
            }
            Err(error) => self.error(error.into()),
        }
    }

    fn ignored(&mut self, files: Vec<PathBuf>, endings: &'static str) {
        let warn =
            |path: PathBuf| ConfigError { problem: Problem::Ending { endings }, place: Place::whole(&path) };
        self.config.warnings.extend(files.into_iter().map(|path| Fault::from(warn(path))));
    }

    fn any_folder(&mut self, path: &Path) {
        let tree = Root::new(path);
        let is_tree = tree.join(NATIVE).is_dir() || tree.join(LEGACY).exists();
        if is_tree {
            self.folder(&tree.join(NATIVE));
            self.legacy(&tree.join(LEGACY));
        } else if ["enmesh.toml", "enmesh.d", "services"].iter().any(|name| path.join(name).exists()) {
            self.folder(path);
        } else {
            self.services(path);
        }
    }

    fn any_file(&mut self, path: &Path) {
        let parent = path.parent().and_then(Path::file_name).unwrap_or_default();
        let name = path.file_name().unwrap_or_default();
        if name == "service-config.json" {
            self.legacy(path);
        } else if name == "enmesh.toml" || parent == "enmesh.d" {
            self.host(&[path.to_owned()]);
        } else if parent == "services" {
            self.service(path);
        } else {
            self.by_content(path);
        }
    }

    /// A file whose name says nothing: the keys of the three forms have none in common.
    fn by_content(&mut self, path: &Path) {
        let Ok(Some(root)) = self.read(path, false) else { return self.service(path) };
        let has = |key: &str| root.get(key).is_some();
        let host_keys =
            ["control_plane", "registration", "driver", "profile", "virtual_ips", "consul", "envoy"];
        if has("annotations") {
            self.legacy(path);
        } else if !has("name") && host_keys.iter().chain(&["ports", "static", "dns"]).any(|key| has(key)) {
            self.host(&[path.to_owned()]);
        } else {
            self.service(path);
        }
    }

    /// Reads and parses one file; `None` where there is none.
    fn read(&mut self, path: &Path, note: bool) -> Result<Option<Node>, Broken> {
        let document = source::read(path);
        if note && !matches!(document, Ok(None)) {
            self.config.sources.push(path.to_owned());
        }
        let Some(document) = document? else { return Ok(None) };
        let Some(format) = Format::of(path) else {
            let problem = Problem::Ending { endings: "`.toml` and `.json`" };
            return Err(ConfigError { problem, place: Place::whole(path) }.into());
        };
        if format == Format::Json && document.text.trim().is_empty() {
            return Err(ConfigError { problem: Problem::Empty, place: Place::whole(path) }.into());
        }
        parse::parse(&Rc::new(document), format).map(Some)
    }

    fn broken(&mut self, broken: Broken) {
        let mut fault = Fault::from(broken.error);
        fault.service = broken.service;
        self.error(fault);
    }

    fn host(&mut self, paths: &[PathBuf]) {
        let mut merged: Option<Node> = None;
        for path in paths {
            match self.read(path, true) {
                Ok(None) => {}
                // Each file is held against the types on its own, so that its slips are said of it
                // even where another file replaces the value.
                Ok(Some(node)) => match de::read::<HostConfig>(&node) {
                    Ok(_) => match &mut merged {
                        Some(base) => base.merge(node),
                        none => *none = Some(node),
                    },
                    Err(error) => self.host_error(error),
                },
                Err(broken) => self.host_error(broken.error),
            }
        }
        if let Some(node) = self.environment.host.take() {
            match &mut merged {
                Some(base) => base.merge(node),
                none => *none = Some(node),
            }
        }
        let Some(root) = merged else { return };
        match de::read::<HostConfig>(&root) {
            Ok(mut host) => {
                host.ports.make_room();
                for error in host_rules::host(&host, &root) {
                    self.host_error(error);
                }
                self.config.host = host;
            }
            Err(error) => self.host_error(error),
        }
    }

    fn host_error(&mut self, error: ConfigError) {
        self.config.host_ok = false;
        self.error(error.into());
    }

    fn service(&mut self, path: &Path) {
        let root = match self.read(path, true) {
            Ok(Some(root)) => root,
            Ok(None) => return,
            Err(broken) => return self.broken(broken),
        };
        self.service_of(&root, path);
    }

    /// The service that `root`, which came from `path`, describes.
    fn service_of(&mut self, root: &Node, path: &Path) {
        let owner = parse::service_of(root);
        let mut service: ServiceConfig = match de::read(root) {
            Ok(service) => service,
            Err(error) => return self.broken(Broken { error, service: owner }),
        };
        service.source = path.to_owned();
        let spot = |steps: &[Step<'_>]| root.spot(steps);
        self.judge(service, &spot);
    }

    /// Holds a service that was read against the rules between its fields.
    fn judge(&mut self, service: ServiceConfig, spot: rules::Spot<'_>) {
        let id = service.id();
        let errors = rules::service(&service, spot);
        if errors.is_empty() {
            let warnings = rules::warnings(&service, spot).into_iter();
            self.config.warnings.extend(warnings.map(|warning| Fault::from(warning).of_service(&id)));
            let id = spot(&[Step::Key(if service.id.is_some() { "id" } else { "name" })]);
            let scope = spot(&[Step::Key("capture"), Step::Key("scope")]);
            self.loaded.push(Loaded { service, id, scope });
        }
        self.config.errors.extend(errors.into_iter().map(|error| Fault::from(error).of_service(&id)));
    }

    fn legacy(&mut self, path: &Path) {
        let root = match self.read(path, true) {
            Ok(Some(root)) => root,
            Ok(None) => return,
            Err(broken) => return self.broken(broken),
        };
        let reading = legacy::read(&root, path);
        let owner = reading.owner.clone();
        let say = |error: ConfigError| {
            let mut fault = Fault::from(error);
            fault.service = owner.clone();
            fault
        };
        self.config.warnings.extend(reading.warnings.into_iter().map(say));
        self.config.errors.extend(reading.errors.into_iter().map(say));
        if let Some(service) = reading.service {
            self.judge(service, &|steps| legacy::spot(&root, steps));
        }
    }

    fn finish(mut self) -> Config {
        self.config.services = apart(self.loaded, &mut self.config.errors);
        self.config.services.sort_by_key(ServiceConfig::id);
        self.config
    }
}

/// Takes out the services that collide with one of an earlier file, each with an error of its own.
fn apart(loaded: Vec<Loaded>, errors: &mut Vec<Fault>) -> Vec<ServiceConfig> {
    let mut ids: BTreeMap<ServiceId, PathBuf> = BTreeMap::new();
    let mut scopes: BTreeMap<Scope, (ServiceId, PathBuf)> = BTreeMap::new();
    let mut services = Vec::new();
    for Loaded { service, id: id_at, scope: scope_at } in loaded {
        let id = service.id();
        if let Some(other) = ids.get(&id) {
            let problem = Problem::DuplicateId { id: id.to_string(), other: other.clone() };
            errors.push(Fault::from(ConfigError::at(problem, &id_at)).of_service(&id));
            continue;
        }
        // Without rules of its own a service has no scope to share.
        if service.enabled && service.capture.mode == Mode::Transparent {
            let scope = &service.capture.scope;
            if let Some((other, file)) = scopes.get(scope) {
                let problem = Problem::ScopeTwice {
                    scope: scope.to_string(),
                    other: other.to_string(),
                    file: file.clone(),
                };
                errors.push(Fault::from(ConfigError::at(problem, &scope_at)).of_service(&id));
                continue;
            }
            scopes.insert(scope.clone(), (id.clone(), service.source.clone()));
        }
        ids.insert(id, service.source.clone());
        services.push(service);
    }
    services
}
