// What a test suite on Testcontainers does, each step one line of output.
//
// node testcontainers.js REGISTRY    with DOCKER_HOST set. REGISTRY/busybox can be pulled.
'use strict'

const { GenericContainer, Network, Wait, getContainerRuntimeClient } = require('testcontainers')
const { text } = require('stream/consumers')

const image = process.argv[2] + '/busybox:latest'
const say = (what, ...values) => console.log(what + ':', ...values.map(v => typeof v === 'string' ? v : JSON.stringify(v)))
const fetchText = async container => (await fetch(`http://${container.getHost()}:${container.getMappedPort(8080)}/`)).text()

async function httpServer () {
  // The port is asked on the host of DOCKER_HOST, whatever inspect says.
  const server = await new GenericContainer(image)
    .withCommand(['sh', '-c', 'sleep 0.3; echo page >/tmp/index.html; exec httpd -f -p 8080 -h /tmp'])
    .withExposedPorts(8080)
    .withLabels({ app: 'tc' })
    .withEnvironment({ COLOUR: 'blue' })
    .withCopyContentToContainer([{ content: 'copied', target: '/tmp/copied' }])
    .withTmpFs({ '/scratch': 'rw' })
    .withWaitStrategy(Wait.forHttp('/', 8080).forStatusCode(200))
    .withStartupTimeout(30000)
    .start()
  say('http', await fetchText(server))
  say('host is that of DOCKER_HOST', server.getHost() === new URL(process.env.DOCKER_HOST).hostname)
  const result = await server.exec(['sh', '-c', 'echo $COLOUR; cat /tmp/copied; exit 3'])
  say('exec', result.exitCode, result.output)
  say('archive', (await text(await server.copyArchiveFromContainer('/tmp/copied'))).includes('copied'))
  const port = server.getMappedPort(8080)
  await server.restart({ timeout: 0 })
  say('after a restart', await fetchText(server), typeof port, typeof server.getMappedPort(8080))
  await server.stop({ timeout: 1 })
}

async function logAndPort () {
  const lines = []
  const one = await new GenericContainer(image)
    .withCommand(['sh', '-c', 'echo starting; sleep 0.3; echo ready to serve; exec httpd -f -p 8080'])
    .withExposedPorts(8080)
    .withWaitStrategy(Wait.forAll([Wait.forLogMessage(/ready to \w+/), Wait.forListeningPorts()]))
    .withLogConsumer(stream => stream.on('data', line => lines.push(String(line).trim())))
    .start()
  say('logs', (await new Promise(resolve => one.logs().then(stream => { let all = ''; stream.on('data', d => { all += d; if (all.includes('ready')) resolve(all) }) }))).trim())
  for (let i = 0; i < 200 && !lines.join().includes('starting'); i++) await new Promise(resolve => setTimeout(resolve, 50))
  say('log consumer', lines.join().includes('starting'))
  await one.stop({ timeout: 1 })
}

async function networks () {
  const network = await new Network().start()
  const [server, healthy] = await Promise.all([
    new GenericContainer(image).withNetwork(network).withNetworkAliases('server').withCommand(['sh', '-c', 'echo inside >/tmp/index.html; exec httpd -f -p 8080 -h /tmp'])
      .withExposedPorts(8080).withWaitStrategy(Wait.forListeningPorts()).start(),
    new GenericContainer(image).withNetwork(network).withCommand(['sleep', '1000'])
      .withHealthCheck({ test: ['CMD-SHELL', 'true'], interval: 200, timeout: 20000, retries: 5, startPeriod: 0 }).withWaitStrategy(Wait.forHealthCheck()).start()
  ])
  say('by alias', (await healthy.exec(['wget', '-qO-', 'http://server:8080/'])).output)
  say('names', server.getNetworkNames().length, healthy.getNetworkNames().length)
  const client = await getContainerRuntimeClient()
  const mine = (await client.container.list()).filter(c => c.Labels['org.testcontainers.session-id'])
  say('containers of the session', mine.length, new Set(mine.map(c => c.Labels['com.docker.swarm.node'])).size)
  await Promise.all([server.stop({ timeout: 1 }), healthy.stop({ timeout: 1 })])
  await network.stop()
}

async function many () {
  const all = await Promise.all([...'abcdef'].map(word => new GenericContainer(image)
    .withCommand(['sh', '-c', `echo ${word} >/tmp/index.html; exec httpd -f -p 8080 -h /tmp`])
    .withExposedPorts(8080).withWaitStrategy(Wait.forHttp('/', 8080)).start()))
  say('many', await Promise.all(all.map(fetchText)))
  say('ports differ', new Set(all.map(c => c.getMappedPort(8080))).size)
  await Promise.all(all.map(c => c.stop({ timeout: 1 })))
}

async function build () {
  const built = await GenericContainer.fromDockerfile(__dirname + '/image').withBuildArgs({ FROM: image }).build('tc-built:x', { deleteOnExit: false })
  const c = await built.withWaitStrategy(Wait.forOneShotStartup()).start()
  say('build', (await text((await c.logs()))).trim())
  await c.stop()
}

async function failures () {
  try {
    await new GenericContainer(process.argv[2] + '/nosuch:latest').start()
    say('no such image', 'NOT REFUSED')
  } catch (e) {
    say('no such image', e.message)
  }
  try {
    await new GenericContainer(image).withCommand(['sleep', '1000']).withWaitStrategy(Wait.forLogMessage('never')).withStartupTimeout(1000).start()
    say('never ready', 'NOT REFUSED')
  } catch (e) {
    say('never ready', e.message)
  }
}

setInterval(() => {}, 1000) // as a test runner does, this keeps the process while only an idle socket is left

;(async () => {
  for (const part of [httpServer, logAndPort, networks, many, build, failures]) {
    console.log('---', part.name)
    try {
      await part()
    } catch (e) { // the other parts still tell something
      say('ENDED EARLY', String(e), e.stack)
    }
  }
  const client = await getContainerRuntimeClient()
  say('left', (await client.container.dockerode.listContainers({ all: true })).map(c => c.Names))
  process.exit(0) // log streams may be open
})()
