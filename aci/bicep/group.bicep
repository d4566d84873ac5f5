// One container group: an app, and enmesh with its sidecar beside it.

@description('The name of the group, and of the service in Consul.')
param name string

@description('The region.')
param location string

@description('The image of the app.')
param appImage string

@description('Where the app listens on loopback. 0 for an app that only calls others.')
param appPort int

@description('A port of the app that is open to everybody, past the mesh. 0 for none.')
param openPort int

@description('Health checks, such as http://127.0.0.1:9090/health.')
param checks string

@description('What the app calls: NAME:PORT, with commas; each listens on 127.0.0.1:PORT.')
param upstreams string

@description('Environment of the app.')
param appEnvironment array

@description('The image made by aci/image.')
param enmeshImage string

@description('The HTTP API of the Consul servers, such as https://consul.example.com:8501.')
param consulAddress string

@description('The auth method of Consul for managed identities.')
param loginMethod string

@description('The application that stands for Consul in the tenant.')
param loginResource string

@description('The resource id of the user-assigned identity that the group is.')
param identityId string

@description('The client id of that identity.')
param identityClientId string

@description('The subnet for container groups. Empty for a public address.')
param subnetId string

@description('A confidential group may redirect, so the app needs no upstreams on loopback.')
param confidential bool

@description('The policy of a confidential group, as `az confcom acipolicygen` makes it.')
param ccePolicy string

var inVnet = !empty(subnetId)
var groupId = resourceId('Microsoft.ContainerInstance/containerGroups', name)
var redirects = confidential ? { capabilities: { add: [ 'CAP_NET_ADMIN' ] } } : null
var readiness = 15000
var sidecarPort = 15050

var service = [
  { name: 'ENMESH_PROFILE', value: 'aci' }
  { name: 'ENMESH_SERVICE_NAME', value: name }
  { name: 'ENMESH_SERVICE_PORT', value: appPort == 0 ? '' : string(appPort) }
  { name: 'ENMESH_SERVICE_CHECK', value: checks }
  { name: 'ENMESH_SERVICE_UPSTREAM', value: upstreams }
  { name: 'ENMESH_PORTS_INBOUND', value: '${sidecarPort}-15099' }
]
var consul = [
  { name: 'ENMESH_CONSUL_ADDRESS', value: consulAddress }
  { name: 'ENMESH_CONSUL_NODE', value: name }
  { name: 'ENMESH_REGISTRATION', value: 'catalog' }
  { name: 'ENMESH_CONSUL_LOGIN_METHOD', value: loginMethod }
  { name: 'ENMESH_CONSUL_LOGIN_IDENTITY_RESOURCE', value: loginResource }
  { name: 'ENMESH_CONSUL_LOGIN_IDENTITY_CLIENT_ID', value: identityClientId }
  { name: 'ENMESH_PLATFORM_GROUP', value: groupId }
  { name: 'ENMESH_PLATFORM_CLIENT_ID', value: identityClientId }
]

resource group 'Microsoft.ContainerInstance/containerGroups@2023-05-01' = {
  name: name
  location: location
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identityId}': {} }
  }
  properties: {
    osType: 'Linux'
    sku: confidential ? 'Confidential' : 'Standard'
    restartPolicy: 'Always'
    confidentialComputeProperties: confidential ? { ccePolicy: ccePolicy } : null
    subnetIds: inVnet ? [ { id: subnetId } ] : null
    ipAddress: {
      type: inVnet ? 'Private' : 'Public'
      ports: concat(
        [ { protocol: 'TCP', port: sidecarPort } ],
        openPort == 0 ? [] : [ { protocol: 'TCP', port: openPort } ]
      )
    }
    // Rules before anything of the app runs. It has no identity and needs none.
    initContainers: confidential ? [
      {
        name: 'mesh-init'
        properties: {
          image: enmeshImage
          command: [ 'enmesh', 'init' ]
          environmentVariables: service
          securityContext: redirects
        }
      }
    ] : []
    containers: [
      {
        name: 'app'
        properties: {
          image: appImage
          environmentVariables: appEnvironment
          ports: openPort == 0 ? [] : [ { protocol: 'TCP', port: openPort } ]
          resources: { requests: { cpu: json('0.5'), memoryInGB: json('0.5') } }
        }
      }
      {
        name: 'mesh'
        properties: {
          image: enmeshImage
          command: [ 'enmesh', 'run' ]
          environmentVariables: concat(service, consul)
          ports: [ { protocol: 'TCP', port: sidecarPort } ]
          readinessProbe: {
            httpGet: { path: '/ready', port: readiness, scheme: 'http' }
            periodSeconds: 5
          }
          livenessProbe: {
            httpGet: { path: '/live', port: readiness, scheme: 'http' }
            initialDelaySeconds: 10
            periodSeconds: 10
          }
          securityContext: redirects
          resources: { requests: { cpu: json('0.5'), memoryInGB: json('0.5') } }
        }
      }
    ]
  }
}

output address string = group.properties.ipAddress.ip
