// A test with a container of its own, as Testcontainers makes it: npm install testcontainers.
const { GenericContainer } = require('testcontainers')

async function main() {
  const web = await new GenericContainer('busybox')
    .withCommand(['sh', '-c', 'echo 42 >answer; exec httpd -f'])
    .withExposedPorts(80)
    .start()
  const at = `http://${web.getHost()}:${web.getMappedPort(80)}/answer`
  console.log(at, (await (await fetch(at)).text()).trim())
  await web.stop()
}
main()
