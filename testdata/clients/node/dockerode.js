// What a program on dockerode does, each step one line of output.
//
// node dockerode.js REGISTRY    with DOCKER_HOST set. REGISTRY/busybox can be pulled.
'use strict'

const Docker = require('dockerode')
const readline = require('readline')
const tar = require('tar-stream')
const { PassThrough } = require('stream')
const { text } = require('stream/consumers')

const registry = process.argv[2]
const image = registry + '/busybox:latest'
const docker = new Docker()

const say = (what, ...values) => console.log(what + ':', ...values.map(v => typeof v === 'string' ? v : JSON.stringify(v)))
const sorted = list => [...list].sort()

// refused tells the status and the words of the error that the call must end with.
async function refused (what, call) {
  try {
    say(what, 'NOT REFUSED', await call())
  } catch (e) {
    say(what, e.statusCode, e.reason, e.json && e.json.message)
  }
}

async function until (what, condition) {
  for (let i = 0; i < 200; i++) {
    if (await condition()) return
    await new Promise(resolve => setTimeout(resolve, 50))
  }
  say(what, 'never came true')
}

// split is what came over an attached stream, as [stdout, stderr].
function split (stream) {
  const out = new PassThrough()
  const err = new PassThrough()
  docker.modem.demuxStream(stream, out, err)
  stream.on('end', () => { out.end(); err.end() })
  return Promise.all([text(out), text(err)])
}

const progress = stream => new Promise((resolve, reject) => docker.modem.followProgress(stream, (err, all) => err ? reject(err) : resolve(all)))

async function system () {
  say('ping', String(await docker.ping()))
  const version = await docker.version()
  say('version', version.ApiVersion, version.MinAPIVersion, version.Version)
  const info = await docker.info()
  say('info', info.OSType, info.Swarm.LocalNodeState)
  say('df', sorted(Object.keys(await docker.df())))
}

async function images () {
  await refused('create, image missing', () => docker.createContainer({ Image: image }))
  const pulled = await progress(await docker.pull(image))
  say('pull', pulled[pulled.length - 1].status.split(' ')[0])
  const inspected = await docker.getImage(image).inspect()
  say('image', sorted(inspected.RepoTags), inspected.RootFS.Layers)
  say('history', (await docker.getImage(image).history()).map(h => h.CreatedBy))
  await docker.getImage(image).tag({ repo: 'node', tag: 'one' })
  say('images', (await docker.listImages({ filters: { reference: ['node'] } })).map(i => sorted(i.RepoTags)))
  const pack = tar.pack()
  pack.entry({ name: 'Dockerfile' }, `FROM ${image}\nARG WORD\nRUN echo $WORD >/word\nCMD cat /word\n`)
  pack.finalize()
  const built = await progress(await docker.buildImage(pack, { t: 'node:built', buildargs: { WORD: 'built' } }))
  say('build', built.filter(l => /^Success/.test(l.stream)).length)
  // Not with AutoRemove: run asks for the exit code when the container may be gone.
  const out = new PassThrough()
  const output = text(out)
  const [result, ran] = await docker.run('node:built', [], out)
  say('run what was built', result, await output)
  await ran.remove()
  const archive = await docker.getImage('node:built').get()
  const loaded = await progress(await docker.loadImage(archive))
  say('load', loaded[loaded.length - 1].stream)
  for (const name of ['node:one', 'node:built']) say('remove', (await docker.getImage(name).remove()).map(r => Object.keys(r)[0]).includes('Untagged'))
  await refused('image that was removed', () => docker.getImage('node:built').inspect())
}

async function containers () {
  const container = await docker.createContainer({
    Image: image,
    name: 'web',
    Cmd: ['sh', '-c', 'echo out; echo err >&2; exec httpd -f -h /tmp'],
    Labels: { app: 'node' },
    ExposedPorts: { '80/tcp': {} },
    HostConfig: { PublishAllPorts: true, Memory: 64 << 20 },
    StopSignal: 'SIGKILL'
  })
  say('create', sorted(Object.keys(container)).includes('id'))
  const ended = container.wait({ condition: 'removed' })
  await container.start()
  await until('logs', async () => {
    const logs = String(await container.logs({ stdout: true, stderr: true }))
    return logs.includes('out') && logs.includes('err') // two pipes, and either may be first
  })
  say('logs', await split(await container.logs({ stdout: true, stderr: true, follow: false }).then(b => { const s = new PassThrough(); s.end(b); return s })))
  const following = split(await container.logs({ stdout: true, stderr: true, follow: true }))
  const exec = await container.exec({ Cmd: ['sh', '-c', 'read line; echo "got $line"; echo bad >&2; exit 6'], AttachStdin: true, AttachStdout: true, AttachStderr: true })
  const stream = await exec.start({ hijack: true, stdin: true })
  stream.write('words\n')
  say('exec', await split(stream))
  const state = await exec.inspect()
  say('exec inspect', state.Running, state.ExitCode)
  const pack = tar.pack()
  pack.entry({ name: 'index.html' }, 'page')
  pack.finalize()
  await container.putArchive(pack, { path: '/tmp' })
  const extract = tar.extract()
  const files = []
  extract.on('entry', (header, body, next) => { text(body).then(t => { files.push([header.name, t]); next() }) })
  await new Promise(async resolve => { extract.on('finish', resolve); (await container.getArchive({ path: '/tmp/index.html' })).pipe(extract) })
  say('archive', files)
  const inspected = await container.inspect()
  say('inspect', inspected.Name, inspected.State.Status, inspected.HostConfig.Memory, Object.keys(inspected.NetworkSettings.Ports))
  say('top', (await container.top()).Titles)
  say('stats', (await container.stats({ stream: false })).name)
  say('list', (await docker.listContainers({ filters: { label: ['app=node'] } })).map(c => [c.Names, c.State, c.Labels.app, c.Ports.length > 0]))
  await container.rename({ name: 'web2' })
  await container.update({ Memory: 96 << 20, MemorySwap: 96 << 20 })
  await container.restart({ t: 0 })
  await container.pause()
  await container.unpause()
  await container.stop({ t: 1 })
  say('logs to the end', (await following)[0].startsWith('out'))
  await container.remove()
  say('wait', (await ended).StatusCode)
  const attached = await docker.createContainer({ Image: image, Cmd: ['cat'], OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true })
  const io = await attached.attach({ stream: true, stdin: true, stdout: true, stderr: true, hijack: true })
  const answer = split(io)
  await attached.start()
  io.end('all of this\n')
  say('attach', await answer, await attached.wait())
  say('prune', (await docker.pruneContainers()).ContainersDeleted.length)
}

async function networksAndVolumes () {
  const net = await docker.createNetwork({ Name: 'nodenet', Labels: { app: 'node' }, CheckDuplicate: true })
  await docker.createVolume({ Name: 'nodevol', Labels: { app: 'node' } })
  say('volume', (await docker.getVolume('nodevol').inspect()).Labels)
  const run = (name, cmd) => docker.createContainer({
    Image: image, name, Cmd: cmd, HostConfig: { NetworkMode: 'nodenet', Binds: ['nodevol:/data'] }, StopSignal: 'SIGKILL',
    NetworkingConfig: { EndpointsConfig: { nodenet: { Aliases: [name + '-alias'] } } }
  }).then(async c => { await c.start(); return c })
  const one = await run('one', ['sh', '-c', 'echo shared >/data/index.html; exec httpd -f -h /data'])
  const two = await run('two', ['sh', '-c', 'until wget -qO- http://one-alias/; do usleep 50000; done'])
  await two.wait()
  say('by name', (await split(await two.logs({ stdout: true, follow: true })))[0])
  say('network', Object.values((await docker.getNetwork('nodenet').inspect()).Containers).map(c => c.Name))
  say('networks', (await docker.listNetworks({ filters: { label: ['app=node'] } })).map(n => n.Name))
  say('volumes', (await docker.listVolumes({ filters: { label: ['app=node'] } })).Volumes.map(v => v.Name))
  await net.disconnect({ Container: 'one' })
  await net.connect({ Container: 'one', EndpointConfig: { Aliases: ['again'] } })
  await refused('network in use', () => net.remove())
  await refused('volume in use', () => docker.getVolume('nodevol').remove())
  await one.remove({ force: true })
  await two.remove()
  say('prune', (await docker.pruneNetworks({ filters: { label: ['app=node'] } })).NetworksDeleted)
  await docker.getVolume('nodevol').remove()
}

async function events () {
  const stream = await docker.getEvents({ filters: { type: ['container'], label: ['watched'] } })
  const seen = []
  const over = (async () => {
    for await (const line of readline.createInterface({ input: stream })) {
      const e = JSON.parse(line)
      seen.push([e.Type, e.Action, e.Actor.Attributes.name])
      if (e.Action === 'destroy') return
    }
  })()
  const c = await docker.createContainer({ Image: image, name: 'watched', Cmd: ['true'], Labels: { watched: '' } })
  await c.start()
  await c.wait()
  await c.remove()
  await over
  stream.destroy()
  say('events', seen)
}

async function errors () {
  await refused('container', () => docker.getContainer('nosuch').inspect())
  await refused('image', () => docker.getImage('nosuch').inspect())
  await refused('network', () => docker.getNetwork('nosuch').inspect())
  await refused('volume', () => docker.getVolume('nosuch').inspect())
  await refused('exec', () => docker.getExec('nosuch').inspect())
  await docker.createContainer({ Image: image, name: 'taken', Cmd: ['true'] })
  await refused('name taken', () => docker.createContainer({ Image: image, name: 'taken' }))
  await refused('bad name', () => docker.createContainer({ Image: image, name: 'a b' }))
  await refused('exec while it does not run', () => docker.getContainer('taken').exec({ Cmd: ['true'] }))
  await refused('stop of nothing', () => docker.getContainer('nosuch').stop())
  await refused('start twice', async () => { const c = docker.getContainer('taken'); await c.start(); await c.wait(); await c.stop() })
  await refused('services', () => docker.listServices())
  await docker.getContainer('taken').remove()
}

(async () => {
  for (const part of [system, images, containers, networksAndVolumes, events, errors]) {
    console.log('---', part.name)
    try {
      await part()
    } catch (e) { // the other parts still tell something
      say('ENDED EARLY', String(e))
    }
  }
  say('containers left', (await docker.listContainers({ all: true })).map(c => c.Names))
})()
