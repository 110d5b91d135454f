/** Registries behind a proxy, which alone knows the registry's name. */
import './short-limit.js';
import test, { type ExecutionContext } from 'ava';
import { pullImage } from '../../src/registry/index.js';
import { proxyFor } from '../../src/registry/proxy.js';
import { bench, isSame } from '../stream/images.js';
import { failure, golden, ownCredentials, PLAIN, pushing } from './images.js';
import { FAR, makeCertificate, startProxy, startRegistry } from './servers.js';

const NAMES = ['http_proxy', 'https_proxy', 'no_proxy'];

/** The variables of this process, until the end of the test. */
function environment(t: ExecutionContext, variables: Record<string, string>): void {
  for (const name of NAMES.flatMap((it) => [it, it.toUpperCase()])) {
    const before = process.env[name];
    t.teardown(() => {
      if (before === undefined) delete process.env[name];
      else process.env[name] = before;
    });
    delete process.env[name];
  }
  Object.assign(process.env, variables);
}

test.serial('a registry with TLS is reached by a tunnel, with the user of the proxy', async (t) => {
  const { at, directory } = await bench(t);
  await ownCredentials(directory);
  const tls = makeCertificate(directory);
  const host = await startRegistry(t, { tls });
  const proxy = await startProxy(t, { [`${FAR}:443`]: host });
  environment(t, { HTTPS_PROXY: `http://me:secret@${proxy.host}` });
  const trusting = { certificates: [tls.certificate] };
  await golden(at('golden'));
  await pushing(at('golden'), 'v2', `${FAR}/a:v2`, trusting);
  await pullImage(`${FAR}/a:v2`, at('copy'), trusting);
  await isSame(t, [at('golden'), 'v2'], [at('copy'), 'v2']);
  t.deepEqual([...new Set(proxy.asked)], [`CONNECT ${FAR}:443`]);

  // Servers of this machine are reached without it, and others that the environment names.
  proxy.asked.length = 0;
  await pullImage(`${host}/a:v2`, at('near'), trusting);
  process.env.NO_PROXY = 'example.org,.test';
  await failure(
    t,
    pullImage(`${FAR}/a:v2`, at('none'), trusting),
    'PCOW_IO',
    /ENOTFOUND|EAI_AGAIN/,
  );
  t.deepEqual(proxy.asked, []);
});

test.serial('a registry without TLS is reached without a tunnel', async (t) => {
  const { at, directory } = await bench(t);
  await ownCredentials(directory);
  const proxy = await startProxy(t, { [`${FAR}:80`]: await startRegistry(t) });
  environment(t, { http_proxy: `me:secret@${proxy.host}` });
  await golden(at('golden'));
  await pushing(at('golden'), 'v1', `${FAR}/a:v1`, PLAIN);
  await pullImage(`${FAR}/a:v1`, at('copy'), PLAIN);
  await isSame(t, [at('golden'), 'v1'], [at('copy'), 'v1']);
  t.true(proxy.asked.length > 5);
  t.true(proxy.asked.every((line) => line.includes(` http://${FAR}/v2/a/`)));
});

test.serial('a proxy that refuses, or is not there, is named', async (t) => {
  const { at, directory } = await bench(t);
  await ownCredentials(directory);
  const { host, asked } = await startProxy(t, {});
  for (const [options, name] of [
    [{}, 'https_proxy'],
    [PLAIN, 'http_proxy'],
  ] as const) {
    const pulling = () => pullImage(`${FAR}/a:v1`, at('copy'), options);
    environment(t, { [name]: `http://${host}` });
    const refusal = await failure(t, pulling(), 'PCOW_PERMISSION', /407/);
    t.true(refusal.message.includes(`the proxy ${host}`), refusal.message);
    t.regex(refusal.next ?? '', /USER:PASSWORD/);
    t.is(asked.splice(0).length, 1, 'and is not asked again');

    process.env[name] = `http://me:secret@${host}`;
    await failure(t, pulling(), 'PCOW_IO', /502/);
    t.is(asked.splice(0).length, 6);
    process.env[name] = 'http://localhost:1';
    await failure(
      t,
      pulling(),
      'PCOW_IO',
      /registry\.test through the proxy localhost:1 .*ECONNREF/,
    );
    process.env[name] = 'socks5://me:secret@localhost:1';
    const { message } = await failure(t, pulling(), 'PCOW_INVALID', /does not name a proxy/);
    t.notRegex(message, /secret/);
  }
});

test.serial('no_proxy has names, domains, addresses, networks and ports', (t) => {
  const proxied = (except: string, address: string) => {
    environment(t, { https_proxy: 'proxy.example.org:3128', no_proxy: except });
    return proxyFor(new URL(`https://${address}/`)) !== null;
  };
  for (const [except, address, expected] of [
    ['', 'a.example.org', true],
    ['', 'localhost:5000', false],
    ['', '127.1.2.3', false],
    ['', '[::1]:5000', false],
    ['*', 'a.example.org', false],
    ['example.org', 'example.org', false],
    ['example.org', 'a.example.org', false],
    ['other.org EXAMPLE.org', 'a.Example.Org:5000', false],
    ['.example.org', 'example.org', true],
    ['.example.org', 'a.example.org', false],
    ['*.example.org', 'a.example.org', false],
    ['example.org', 'anexample.org', true],
    ['example.org:5000', 'a.example.org:5000', false],
    ['example.org:5000', 'a.example.org', true],
    ['example.org:443', 'a.example.org', false],
    ['10.1.2.3', '10.1.2.3:5000', false],
    ['10.1.2.3', '110.1.2.3', true],
    ['10.0.0.0/8', '10.1.2.3', false],
    ['10.0.0.0/8', '11.1.2.3', true],
    ['10.0.0.0/99', '10.1.2.3', true],
    ['fd00::/8', '[fd12::1]', false],
    ['[fd12::1]:5000', '[fd12::1]:5000', false],
    ['fd12::1', '[fd12::1]:5000', false],
  ] as const) {
    t.is(proxied(except, address), expected, `${except} for ${address}`);
  }
});
