// A server app and a client app in two container groups. The Consul servers are elsewhere. docs/aci.md says what has to be
// there first.

@description('The region; that of the resource group unless given.')
param location string = resourceGroup().location

@description('Whether the groups have private addresses in a network of their own, or public ones.')
@allowed([ 'vnet', 'public' ])
param network string = 'vnet'

@description('The image made by aci/image.')
param enmeshImage string

@description('The image of both apps: one that answers HTTP and asks UPSTREAM_URIS.')
param appImage string

@description('The HTTP API of the Consul servers.')
param consulAddress string

@description('The auth method of Consul for managed identities.')
param loginMethod string = 'azure'

@description('The application that stands for Consul in the tenant.')
param loginResource string = 'api://consul'

@description('Confidential groups may redirect.')
param confidential bool = false

@description('The policies of confidential groups.')
param serverCcePolicy string = ''
param clientCcePolicy string = ''

var addresses = '10.90.0.0/16'
var groups = '10.90.1.0/24'

resource serverIdentity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: 'static-server'
  location: location
}

resource clientIdentity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: 'static-client'
  location: location
}

// A subnet for container groups holds nothing else.
resource vnet 'Microsoft.Network/virtualNetworks@2023-09-01' = if (network == 'vnet') {
  name: 'mesh'
  location: location
  properties: {
    addressSpace: { addressPrefixes: [ addresses ] }
    subnets: [
      {
        name: 'groups'
        properties: {
          addressPrefix: groups
          delegations: [
            {
              name: 'groups'
              properties: { serviceName: 'Microsoft.ContainerInstance/containerGroups' }
            }
          ]
        }
      }
    ]
  }
}

var subnetId = network == 'vnet' ? resourceId('Microsoft.Network/virtualNetworks/subnets', 'mesh', 'groups') : ''

// The right to read container groups, by which a group learns its own public address.
var reader = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', 'acdd72a7-3385-48ef-bd42-f606fba81ae7')

resource serverReads 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (network == 'public') {
  name: guid(resourceGroup().id, 'static-server', reader)
  properties: {
    roleDefinitionId: reader
    principalId: serverIdentity.properties.principalId
    principalType: 'ServicePrincipal'
  }
}

resource clientReads 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (network == 'public') {
  name: guid(resourceGroup().id, 'static-client', reader)
  properties: {
    roleDefinitionId: reader
    principalId: clientIdentity.properties.principalId
    principalType: 'ServicePrincipal'
  }
}

module server 'group.bicep' = {
  name: 'static-server'
  params: {
    name: 'static-server'
    location: location
    appImage: appImage
    appPort: 9090
    openPort: 0
    checks: 'http://127.0.0.1:9090/health'
    upstreams: ''
    appEnvironment: [
      { name: 'NAME', value: 'static-server' }
      { name: 'LISTEN_ADDR', value: '127.0.0.1:9090' }
    ]
    enmeshImage: enmeshImage
    consulAddress: consulAddress
    loginMethod: loginMethod
    loginResource: loginResource
    identityId: serverIdentity.id
    identityClientId: serverIdentity.properties.clientId
    subnetId: subnetId
    confidential: confidential
    ccePolicy: serverCcePolicy
  }
  dependsOn: [ vnet, serverReads ]
}

module client 'group.bicep' = {
  name: 'static-client'
  params: {
    name: 'static-client'
    location: location
    appImage: appImage
    appPort: 0
    openPort: 8080
    checks: ''
    upstreams: confidential ? '' : 'static-server:9091'
    appEnvironment: [
      { name: 'NAME', value: 'static-client' }
      { name: 'LISTEN_ADDR', value: '0.0.0.0:8080' }
      { name: 'UPSTREAM_URIS', value: confidential ? 'http://static-server.virtual.consul' : 'http://127.0.0.1:9091' }
    ]
    enmeshImage: enmeshImage
    consulAddress: consulAddress
    loginMethod: loginMethod
    loginResource: loginResource
    identityId: clientIdentity.id
    identityClientId: clientIdentity.properties.clientId
    subnetId: subnetId
    confidential: confidential
    ccePolicy: clientCcePolicy
  }
  dependsOn: [ vnet, clientReads ]
}

@description('For the binding rules of Consul: the object ids of the two identities.')
output serverPrincipal string = serverIdentity.properties.principalId
output clientPrincipal string = clientIdentity.properties.principalId

@description('Where the page of the client is.')
output page string = 'http://${client.outputs.address}:8080/'
