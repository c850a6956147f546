// A test suite on Testcontainers that dies before it has stopped anything.
//
// node crash.js REGISTRY    with DOCKER_HOST and RYUK_CONTAINER_IMAGE set.
'use strict'

const { GenericContainer, Network, getContainerRuntimeClient } = require('testcontainers')

const image = process.argv[2] + '/busybox:latest'
setInterval(() => {}, 1000) // as a test runner does, this keeps the process while only an idle socket is left

;(async () => {
  const network = await new Network().start()
  for (const alias of ['one', 'two']) {
    await new GenericContainer(image).withNetwork(network).withNetworkAliases(alias).withCommand(['sleep', '1000']).start()
  }
  const client = await getContainerRuntimeClient()
  console.log('running:', (await client.container.list()).length) // Ryuk is the third
  process.kill(process.pid, 'SIGKILL')
})()
