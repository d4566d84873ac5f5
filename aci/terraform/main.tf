# A server app and a client app in two container groups. The Consul servers are elsewhere. docs/aci.md says what has to be
# there first.

terraform {
  required_version = ">= 1.5"
  required_providers {
    azurerm = {
      source  = "hashicorp/azurerm"
      version = "~> 4.0"
    }
  }
}

provider "azurerm" {
  features {}
}

variable "resource_group" {
  description = "A resource group that is there."
  type        = string
}

variable "network" {
  description = "Whether the groups have private addresses in a network of their own, or public ones."
  type        = string
  default     = "vnet"
  validation {
    condition     = contains(["vnet", "public"], var.network)
    error_message = "network is vnet or public."
  }
}

variable "enmesh_image" {
  description = "The image made by aci/image."
  type        = string
}

variable "app_image" {
  description = "The image of both apps: one that answers HTTP and asks UPSTREAM_URIS."
  type        = string
}

variable "consul_address" {
  description = "The HTTP API of the Consul servers, such as https://consul.example.com:8501."
  type        = string
}

locals {
  apps = {
    static-server = {
      image       = var.app_image
      port        = 9090
      checks      = "http://127.0.0.1:9090/health"
      environment = { NAME = "static-server", LISTEN_ADDR = "127.0.0.1:9090" }
    }
    static-client = {
      image       = var.app_image
      open_port   = 8080
      upstreams   = "static-server:9091"
      environment = { NAME = "static-client", LISTEN_ADDR = "0.0.0.0:8080", UPSTREAM_URIS = "http://127.0.0.1:9091" }
    }
  }
  in_vnet = var.network == "vnet"
}

data "azurerm_resource_group" "this" {
  name = var.resource_group
}

resource "azurerm_user_assigned_identity" "app" {
  for_each            = local.apps
  name                = each.key
  location            = data.azurerm_resource_group.this.location
  resource_group_name = data.azurerm_resource_group.this.name
}

# The right to read container groups, by which a group learns its own public address.
resource "azurerm_role_assignment" "reads" {
  for_each             = local.in_vnet ? {} : azurerm_user_assigned_identity.app
  scope                = data.azurerm_resource_group.this.id
  role_definition_name = "Reader"
  principal_id         = each.value.principal_id
}

resource "azurerm_virtual_network" "mesh" {
  count               = local.in_vnet ? 1 : 0
  name                = "mesh"
  location            = data.azurerm_resource_group.this.location
  resource_group_name = data.azurerm_resource_group.this.name
  address_space       = ["10.90.0.0/16"]
}

# A subnet for container groups holds nothing else.
resource "azurerm_subnet" "groups" {
  count                = local.in_vnet ? 1 : 0
  name                 = "groups"
  resource_group_name  = data.azurerm_resource_group.this.name
  virtual_network_name = azurerm_virtual_network.mesh[0].name
  address_prefixes     = ["10.90.1.0/24"]

  delegation {
    name = "groups"
    service_delegation {
      name    = "Microsoft.ContainerInstance/containerGroups"
      actions = ["Microsoft.Network/virtualNetworks/subnets/action"]
    }
  }
}

module "group" {
  source         = "./group"
  for_each       = local.apps
  name           = each.key
  location       = data.azurerm_resource_group.this.location
  resource_group = { name = data.azurerm_resource_group.this.name, id = data.azurerm_resource_group.this.id }
  app            = each.value
  enmesh_image   = var.enmesh_image
  consul         = { address = var.consul_address }
  identity = {
    id        = azurerm_user_assigned_identity.app[each.key].id
    client_id = azurerm_user_assigned_identity.app[each.key].client_id
  }
  subnet_id  = local.in_vnet ? azurerm_subnet.groups[0].id : null
  depends_on = [azurerm_role_assignment.reads]
}

output "principals" {
  description = "For the binding rules of Consul: the object ids of the identities."
  value       = { for name, identity in azurerm_user_assigned_identity.app : name => identity.principal_id }
}

output "page" {
  description = "Where the page of the client is."
  value       = "http://${module.group["static-client"].address}:8080/"
}
