//! Envoy: bootstrap, file-xDS resources, admin client.
