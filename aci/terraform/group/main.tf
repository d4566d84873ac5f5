# One container group: an app, and enmesh with its sidecar beside it.

terraform {
  required_version = ">= 1.5"
  required_providers {
    azurerm = {
      source  = "hashicorp/azurerm"
      version = "~> 4.0"
    }
  }
}

variable "name" {
  description = "The name of the group, and of the service in Consul."
  type        = string
}

variable "location" {
  type = string
}

variable "resource_group" {
  description = "Name and id of the resource group."
  type = object({
    name = string
    id   = string
  })
}

variable "app" {
  description = "The app. port: where it listens on loopback (0: it only calls others); open_port: open to everybody, past the mesh (0: none)."
  type = object({
    image       = string
    port        = optional(number, 0)
    open_port   = optional(number, 0)
    checks      = optional(string, "")
    upstreams   = optional(string, "")
    environment = optional(map(string), {})
  })
}

variable "enmesh_image" {
  description = "The image made by aci/image."
  type        = string
}

variable "consul" {
  description = "The HTTP API of the Consul servers, the auth method for managed identities, and the application that stands for Consul."
  type = object({
    address        = string
    login_method   = optional(string, "azure")
    login_resource = optional(string, "api://consul")
  })
}

variable "identity" {
  description = "The user-assigned identity that the group is."
  type = object({
    id        = string
    client_id = string
  })
}

variable "subnet_id" {
  description = "The subnet for container groups. Null for a public address."
  type        = string
  default     = null
}

locals {
  readiness    = 15000
  sidecar_port = 15050
  ports        = [for port in [local.sidecar_port, var.app.open_port] : port if port != 0]
  settings = {
    ENMESH_PROFILE                         = "aci"
    ENMESH_SERVICE_NAME                    = var.name
    ENMESH_SERVICE_PORT                    = var.app.port == 0 ? "" : tostring(var.app.port)
    ENMESH_SERVICE_CHECK                   = var.app.checks
    ENMESH_SERVICE_UPSTREAM                = var.app.upstreams
    ENMESH_PORTS_INBOUND                   = "${local.sidecar_port}-15099"
    ENMESH_CONSUL_ADDRESS                  = var.consul.address
    ENMESH_CONSUL_NODE                     = var.name
    ENMESH_REGISTRATION                    = "catalog"
    ENMESH_CONSUL_LOGIN_METHOD             = var.consul.login_method
    ENMESH_CONSUL_LOGIN_IDENTITY_RESOURCE  = var.consul.login_resource
    ENMESH_CONSUL_LOGIN_IDENTITY_CLIENT_ID = var.identity.client_id
    ENMESH_PLATFORM_GROUP                  = "${var.resource_group.id}/providers/Microsoft.ContainerInstance/containerGroups/${var.name}"
    ENMESH_PLATFORM_CLIENT_ID              = var.identity.client_id
  }
}

resource "azurerm_container_group" "this" {
  name                = var.name
  location            = var.location
  resource_group_name = var.resource_group.name
  os_type             = "Linux"
  # The provider knows no capabilities, so this group redirects nothing: upstreams listen on loopback. A
  # confidential group takes the Bicep template.
  sku             = "Standard"
  restart_policy  = "Always"
  ip_address_type = var.subnet_id == null ? "Public" : "Private"
  subnet_ids      = var.subnet_id == null ? null : [var.subnet_id]

  identity {
    type         = "UserAssigned"
    identity_ids = [var.identity.id]
  }

  dynamic "exposed_port" {
    for_each = toset(local.ports)
    content {
      port     = exposed_port.value
      protocol = "TCP"
    }
  }

  container {
    name                  = "app"
    image                 = var.app.image
    cpu                   = 0.5
    memory                = 0.5
    environment_variables = var.app.environment

    dynamic "ports" {
      for_each = toset([for port in [var.app.open_port] : port if port != 0])
      content {
        port     = ports.value
        protocol = "TCP"
      }
    }
  }

  container {
    name                  = "mesh"
    image                 = var.enmesh_image
    cpu                   = 0.5
    memory                = 0.5
    commands              = ["enmesh", "run"]
    environment_variables = local.settings

    ports {
      port     = local.sidecar_port
      protocol = "TCP"
    }

    readiness_probe {
      period_seconds = 5
      http_get {
        path   = "/ready"
        port   = local.readiness
        scheme = "http"
      }
    }

    liveness_probe {
      initial_delay_seconds = 10
      period_seconds        = 10
      http_get {
        path   = "/live"
        port   = local.readiness
        scheme = "http"
      }
    }
  }
}

output "address" {
  value = azurerm_container_group.this.ip_address
}
