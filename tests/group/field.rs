//! What container groups need around them: a Docker Engine, and a Consul that knows who may be what.
#![allow(dead_code, reason = "the bench uses a part")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use enmesh::config::ConsulConfig;
use enmesh::consul::{Client, Query, TokenSource};
use enmesh::netns::{self, Namespace};
use serde_json::{Value, json};

use super::acl_bed::{Issuer, acl, block, bootstrap};
use super::bed::{Agent, client_of};
use super::docker::{BRIDGE, Docker, IMAGE, until};

/// How long anything may take that is not Docker's.
pub const SOON: Duration = Duration::from_secs(20);
/// Where the app of a group listens.
pub const APP_PORT: u16 = 8080;

/// The sidecar's environment in every group.
const COMMON: [(&str, &str); 5] = [
    // By which the profile is found.
    ("Fabric_NodeIPOrFQDN", "10.0.0.4"),
    ("ENMESH_CONTROL_PLANE", "catalog"),
    ("ENMESH_REGISTRATION", "catalog"),
    ("ENMESH_CONSUL_LOGIN_METHOD", "vm"),
    ("ENMESH_CONSUL_LOGIN_BEARER_TOKEN_FILE", "/run/secrets/jwt"),
];

/// A namespace for a Docker Engine, with its name.
pub fn outside() -> (Named, Namespace) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("enmesh-group-{}-{number}", std::process::id());
    let outside = Namespace::create(&name).expect("these tests need root and network namespaces");
    outside.run_async(async || netns::lo_up().await).unwrap().unwrap();
    (Named(name), outside)
}

/// The name of a namespace. The namespace goes with the last process in it, the name with this.
pub struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        let _ = Namespace::delete(&self.0);
    }
}

pub struct Field {
    pub docker: Docker,
    consul: Option<Agent>,
    operator: PathBuf,
    // After Docker.
    _name: Named,
}

impl Field {
    /// A Consul at the bridge's address, where each group may log in and be its service.
    pub fn new(services: &[&str]) -> Field {
        Field::with(services, env!("CARGO_BIN_EXE_enmesh").into())
    }

    /// The same with another binary than the one that was built with this.
    pub fn with(services: &[&str], enmesh: PathBuf) -> Field {
        let (name, outside) = outside();
        let docker = Docker::start(outside, enmesh);
        let start = async || {
            let mut settings = acl();
            settings["client_addr"] = json!("0.0.0.0");
            let mut agent = Agent::new(settings);
            agent.start().await;
            let operator = bootstrap(&agent).await;
            let TokenSource::File(file) = &operator.settings().token else { panic!("a token of a file") };
            (file.clone(), agent)
        };
        let (operator, agent) = docker.outside.run_async(start).unwrap();
        let field = Field { docker, consul: Some(agent), operator, _name: name };
        let issuer = Issuer::new();
        let mut method: Value = serde_json::from_str(&block("json", "JWTValidationPubKeys")).unwrap();
        method["Config"]["JWTValidationPubKeys"] = json!([issuer.public_key()]);
        field.put("/v1/acl/auth-method", &method);
        for service in services {
            field.may_be(service, &issuer);
        }
        field
    }

    /// Whoever has the JWT may be `service`, on a node of its own.
    fn may_be(&self, service: &str, issuer: &Issuer) {
        let policy =
            json!({ "Name": format!("nodes-{service}"), "Rules": "node_prefix \"\" { policy = \"write\" }" });
        self.put("/v1/acl/policy", &policy);
        let role = json!({
            "Name": service, "Policies": [{ "Name": policy["Name"] }],
            "ServiceIdentities": [{ "ServiceName": service }],
        });
        self.put("/v1/acl/role", &role);
        let rule = json!({
            "AuthMethod": "vm", "BindType": "role", "BindName": service,
            "Selector": format!("value.subject == \"{service}\""),
        });
        self.put("/v1/acl/binding-rule", &rule);
        let file = self.docker.at(&format!("jwt-{service}"));
        fs::write(&file, issuer.jwt(service)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// The file with the token that may everything.
    pub fn operator(&self) -> &std::path::Path {
        &self.operator
    }

    fn consul<T: Send>(&self, work: impl AsyncFnOnce(&Client) -> T + Send) -> T {
        let config = ConsulConfig { token_file: Some(self.operator.clone()), ..ConsulConfig::default() };
        self.docker.outside.run_async(async || work(&client_of(&config)).await).unwrap()
    }

    pub fn put(&self, path: &str, body: &Value) -> Value {
        self.consul(async |client: &Client| client.put(&Query::new(path), Some(body)).await.unwrap().body)
    }

    pub fn post(&self, path: &str, body: &Value) -> Value {
        self.consul(async |client: &Client| client.post(&Query::new(path), Some(body)).await.unwrap().body)
    }

    /// What Consul has at `path`; null where it has nothing.
    pub fn get(&self, path: &str) -> Value {
        self.consul(async |client: &Client| {
            client.get(&Query::new(path)).await.map_or(Value::Null, |answer| answer.body)
        })
    }

    /// The instances of `service` that Consul has, and whether every check of each passes.
    pub fn instances(&self, service: &str) -> Vec<(String, bool)> {
        let found = self.get(&format!("/v1/health/connect/{service}"));
        let passing = |instance: &Value| {
            let checks = instance["Checks"].as_array().unwrap();
            !checks.is_empty() && checks.iter().all(|check| check["Status"] == "passing")
        };
        let node = |instance: &Value| instance["Node"]["Node"].as_str().unwrap().to_owned();
        found.as_array().into_iter().flatten().map(|it| (node(it), passing(it))).collect()
    }

    /// The tokens of logins.
    pub fn logins(&self) -> usize {
        let tokens = self.get("/v1/acl/tokens");
        let of_login = |token: &&Value| token["AuthMethod"] == "vm";
        tokens.as_array().unwrap().iter().filter(of_login).count()
    }

    /// Starts the container of an app, which is also the first of its group.
    pub fn app(&self, group: &str, service: &str) {
        let listen = format!("127.0.0.1:{APP_PORT}");
        let app = format!("{group}-app");
        self.docker.run(&[
            "run",
            "--detach",
            "--name",
            &app,
            "--hostname",
            group,
            "--user",
            "1000",
            IMAGE,
            "enmesh",
            "demo-app",
            "serve",
            "--name",
            service,
            "--listen",
            &listen,
        ]);
    }

    /// Starts a container of enmesh in the group, with `options` of Docker's; `command` in the place of the image's own.
    pub fn enmesh(
        &self,
        (group, service): (&str, &str),
        options: &[&str],
        environment: &[(&str, &str)],
        command: &[&str],
    ) -> Result<String, String> {
        let mut all: Vec<String> = ["run", "--network"].map(str::to_owned).to_vec();
        all.push(format!("container:{group}-app"));
        let jwt = self.docker.at(&format!("jwt-{service}"));
        all.extend(["--volume".to_owned(), format!("{}:/run/secrets/jwt:ro", jwt.display())]);
        let consul = format!("http://{BRIDGE}:8500");
        let own = [("ENMESH_CONSUL_ADDRESS", consul.as_str()), ("ENMESH_SERVICE_NAME", service)];
        for (name, value) in COMMON.iter().chain(&own).chain(environment) {
            all.extend(["--env".to_owned(), format!("{name}={value}")]);
        }
        all.extend(options.iter().map(|&option| option.to_owned()));
        all.push(IMAGE.to_owned());
        all.extend(command.iter().map(|&word| word.to_owned()));
        self.docker.try_run(&all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Starts the sidecar of a group as process number 1 of its container, as the image says.
    pub fn sidecar(&self, (group, service): (&str, &str), options: &[&str], environment: &[(&str, &str)]) {
        let name = format!("{group}-sidecar");
        let options = [&["--detach", "--name", &name][..], options].concat();
        self.enmesh((group, service), &options, environment, &[]).unwrap();
    }

    /// Ends Consul, as if the group were cut off from it.
    pub fn cut_off(&mut self) {
        self.consul.take();
    }

    pub fn status(&self, group: &str) -> Value {
        self.docker.json(&format!("{group}-sidecar"), &["enmesh", "status", "--json"])
    }

    /// What a port of the group answers to somebody outside, head and body.
    pub fn http_from_outside(&self, group: &str, port: u16, path: &str) -> Result<String, String> {
        let address = format!("{}:{port}", self.docker.address(&format!("{group}-app")));
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(SOON))?;
            write!(stream, "GET {path} HTTP/1.1\r\nhost: group\r\nconnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        self.docker.outside.run(ask).unwrap().map_err(|error| error.to_string())
    }

    /// What the readiness endpoint of the group says to somebody outside.
    pub fn ready(&self, group: &str) -> Result<(u16, Value), String> {
        let text = self.http_from_outside(group, 15000, "/ready")?;
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or("no HTTP")?;
        let (_, body) = text.split_once("\r\n\r\n").ok_or("no body")?;
        Ok((status, serde_json::from_str(body).map_err(|error| format!("{error}: {body}"))?))
    }

    pub fn await_ready(&self, group: &str) {
        until(&format!("{group} to be ready"), SOON, || {
            let (status, body) = self.ready(group)?;
            let log = || self.docker.log(&format!("{group}-sidecar"));
            if status == 200 { Ok(()) } else { Err(format!("{status} {body}\n{}", log())) }
        });
    }

    /// How a request from the app's container goes.
    pub fn get_from(&self, group: &str, url: &str) -> Value {
        self.docker.json(&format!("{group}-app"), &["enmesh", "demo-app", "get", url])
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let names = self.docker.try_run(&["ps", "--all", "--format", "{{.Names}}"]).unwrap_or_default();
            for name in names.split_whitespace().filter(|name| name.ends_with("sidecar")) {
                eprintln!("--- {name}\n{}", self.docker.log(name));
            }
        }
        drop(self.consul.take());
    }
}
