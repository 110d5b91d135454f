/** Push and pull with Debian's registry, and with skopeo between registries and layouts. */
import { copyFile, mkdir, readFile, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import test from 'ava';
import { IDENTITY_TOKEN, tokenServer } from '../../scripts/registry/tokens.js';
import { loginToRegistry, logoutOfRegistry, pullImage } from '../../src/registry/index.js';
import { bench, isSame, MiB, snapshotsOf } from '../stream/images.js';
import { failure, golden, ownCredentials, PLAIN, pushing, skopeo } from './images.js';
import { makeCertificate, startRegistry, startServer } from './servers.js';

test.serial(
  'an image goes through a registry byte for byte, a second push moves nothing, an update little',
  async (t) => {
    const { at, directory } = await bench(t);
    await ownCredentials(directory);
    const host = await startRegistry(t);
    await golden(at('golden'));
    const first = await pushing(at('golden'), 'v1', `${host}/images/golden:v1`, PLAIN);
    t.true(first.sent > 4 * MiB);
    const again = await pushing(at('golden'), 'v1', `${host}/images/golden:v1`, PLAIN);
    t.deepEqual([again.sent, again.present, again.digest], [0, first.sent, first.digest]);
    await pullImage(`${host}/images/golden:v1`, at('copy'), PLAIN);
    await isSame(t, [at('golden'), 'v1'], [at('copy'), 'v1']);

    const update = await pushing(at('golden'), 'v2', `${host}/images/golden:v2`, PLAIN);
    t.true(update.sent < 1.1 * (MiB / 2), `${update.sent} bytes`);
    const pulled = await pullImage(`${host}/images/golden@${update.digest}`, at('copy'), PLAIN);
    t.true(pulled.fetched < 1.1 * (MiB / 2), `${pulled.fetched} bytes`);
    t.deepEqual(await snapshotsOf(at('copy')), await snapshotsOf(at('golden')));
    for (const name of ['v1', 'v2']) await isSame(t, [at('golden'), name], [at('copy'), name]);

    await failure(
      t,
      pullImage(`${host}/images/golden:v3`, at('none'), PLAIN),
      'PCOW_NOT_FOUND',
      /v3/,
    );
    const tls = await failure(
      t,
      pullImage(`${host}/images/golden:v1`, at('none')),
      'PCOW_IO',
      /no answer/,
    );
    t.regex(tls.next ?? '', /--plain-http/);
  },
);

test.serial(
  'skopeo copies to another registry and to a layout with the same digest, and both are pulled',
  async (t) => {
    const { at, directory } = await bench(t);
    await ownCredentials(directory);
    const [host, other] = [await startRegistry(t), await startRegistry(t)];
    await golden(at('golden'));
    const { digest } = await pushing(at('golden'), 'v2', `${host}/a:v2`, PLAIN);
    const from = `docker://${host}/a:v2`;
    await skopeo(
      'copy',
      '--src-tls-verify=false',
      '--dest-tls-verify=false',
      from,
      `docker://${other}/b/c:kept`,
    );
    await skopeo('copy', '--src-tls-verify=false', from, `oci:${directory}/layout:kept`);
    for (const [name, reference] of [
      ['one', `${other}/b/c:kept`],
      ['two', `oci:${directory}/layout:kept`],
      ['three', `oci:${directory}/layout@${digest}`],
    ] as const) {
      t.is((await pullImage(reference, at(name), PLAIN)).digest, digest);
      for (const snapshot of ['v1', 'v2'])
        await isSame(t, [at('golden'), snapshot], [at(name), snapshot]);
    }
    const raw = await skopeo(
      'inspect',
      '--raw',
      '--tls-verify=false',
      `docker://${other}/b/c:kept`,
    );
    t.like(JSON.parse(raw), {
      artifactType: 'application/vnd.pcow.image.v1',
      annotations: { 'org.opencontainers.image.title': 'v2' },
    });
    // And back: a layout that Pcow wrote.
    await pushing(at('one'), 'v2', `oci:${directory}/own:v2`, {});
    await skopeo(
      'copy',
      '--dest-tls-verify=false',
      `oci:${directory}/own:v2`,
      `docker://${host}/back:v2`,
    );
    t.is((await pullImage(`${host}/back:v2`, at('four'), PLAIN)).digest, digest);
  },
);

test.serial(
  'Basic authorization over TLS: credentials are checked, kept as skopeo keeps them, and forgotten',
  async (t) => {
    const { at, directory } = await bench(t);
    const file = await ownCredentials(directory);
    const tls = makeCertificate(directory);
    const host = await startRegistry(t, { tls, basic: true });
    const trusting = { certificates: [tls.certificate] };
    await golden(at('golden'));
    const untrusted = await failure(
      t,
      pullImage(`${host}/a:v1`, at('copy')),
      'PCOW_IO',
      /self-signed/,
    );
    t.regex(untrusted.next ?? '', /--ca/);
    const unknown = await failure(
      t,
      pushing(at('golden'), 'v1', `${host}/a:v1`, trusting),
      'PCOW_PERMISSION',
      /refuses/,
    );
    t.regex(unknown.next ?? '', /pcow login/);
    await failure(
      t,
      loginToRegistry(host, { username: 'me', password: 'wrong' }, trusting),
      'PCOW_PERMISSION',
      /refuses/,
    );
    t.is(await readFile(file, 'utf8'), '{}');

    t.is(await loginToRegistry(host, { username: 'me', password: 'secret' }, trusting), file);
    t.is((await stat(file)).mode & 0o777, 0o600);
    await pushing(at('golden'), 'v1', `${host}/a:v1`, trusting);
    await pullImage(`${host}/a:v1`, at('copy'), trusting);
    await isSame(t, [at('golden'), 'v1'], [at('copy'), 'v1']);
    t.regex(
      await skopeo(
        'inspect',
        '--raw',
        '--tls-verify=false',
        `--authfile=${file}`,
        `docker://${host}/a:v1`,
      ),
      /vnd\.pcow/,
    );
    t.true(await logoutOfRegistry(host));
    t.false(await logoutOfRegistry(host));
    await skopeo(
      'login',
      '--tls-verify=false',
      `--authfile=${file}`,
      '-u',
      'me',
      '-p',
      'secret',
      host,
    );
    await pullImage(`${host}/a:v1`, at('other'), trusting);
  },
);

test.serial(
  'tokens are fetched for a repository, shared by requests, and replaced when they expire',
  async (t) => {
    const { at, directory } = await bench(t);
    const file = await ownCredentials(directory);
    const tls = makeCertificate(directory);
    const scopes: string[] = [];
    // Each token is too old at once: every request that the registry refuses needs another one.
    const lasting = { seconds: 300 };
    const tokens = await startServer(
      t,
      (request, response) => {
        tokenServer(tls, (scope) => scopes.push(scope), lasting.seconds)(request, response);
      },
      tls,
    );
    const host = await startRegistry(t, {
      tls,
      token: { realm: `https://${tokens}/token`, certificate: tls.certificate },
    });
    const trusting = { certificates: [tls.certificate] };
    await golden(at('golden'));
    await failure(
      t,
      pushing(at('golden'), 'v1', `${host}/a/b:v1`, trusting),
      'PCOW_PERMISSION',
      /who are you/,
    );
    await writeFile(
      file,
      JSON.stringify({ auths: { [host]: { auth: Buffer.from('me:secret').toString('base64') } } }),
    );
    scopes.length = 0;
    await pushing(at('golden'), 'v2', `${host}/a/b:v1`, trusting);
    t.true(scopes.length <= 3 && scopes.length > 0, `${scopes.length} tokens`);
    t.true(scopes.every((scope) => scope.startsWith('repository:a/b:')));
    lasting.seconds = 1;
    await pullImage(`${host}/a/b:v1`, at('copy'), trusting);
    await isSame(t, [at('golden'), 'v2'], [at('copy'), 'v2']);
  },
);

test.serial(
  'identity tokens, from a file and from a helper, are exchanged for tokens',
  async (t) => {
    const { at, directory } = await bench(t);
    const file = await ownCredentials(directory);
    const tls = makeCertificate(directory);
    let tokens = 0;
    const server = await startServer(
      t,
      tokenServer(tls, () => ++tokens),
      tls,
    );
    const token = { realm: `https://${server}/token`, certificate: tls.certificate };
    const host = await startRegistry(t, { tls, token });
    const trusting = { certificates: [tls.certificate] };
    await golden(at('golden'));
    const logIn = (auths: unknown, credHelpers: unknown) =>
      writeFile(file, JSON.stringify({ auths, credHelpers }));
    await logIn({ [host]: { auth: '', identitytoken: 'another' } }, {});
    await failure(
      t,
      pushing(at('golden'), 'v1', `${host}/a:v1`, trusting),
      'PCOW_PERMISSION',
      /who are you/,
    );
    await logIn({ [host]: { auth: '', identitytoken: IDENTITY_TOKEN } }, {});
    await pushing(at('golden'), 'v1', `${host}/a:v1`, trusting);
    t.true(tokens > 0);
    const before = tokens;

    await helperIn(directory, `{"Username":"<token>","Secret":"${IDENTITY_TOKEN}"}`);
    await logIn({}, { [host]: 'test' });
    await pullImage(`${host}/a:v1`, at('copy'), trusting);
    t.is(tokens, before + 1);
    t.is(await readFile(path.join(directory, 'asked'), 'utf8'), `get ${host}\n`);
    await isSame(t, [at('golden'), 'v1'], [at('copy'), 'v1']);
  },
);

/** A helper `test` that gives this answer, and writes down what it is asked. */
async function helperIn(directory: string, answer: string, exit = 0): Promise<void> {
  await writeFile(
    path.join(directory, 'docker-credential-test'),
    `#!/bin/sh\necho "$1 $(cat)" >> ${directory}/asked\necho '${answer}'\nexit ${exit}\n`,
    { mode: 0o755 },
  );
  process.env.PATH = `${directory}:${process.env.PATH ?? ''}`;
}

test.serial('a credential helper keeps credentials, and other keys of the file stay', async (t) => {
  const { directory, at } = await bench(t);
  const file = await ownCredentials(directory);
  const host = await startRegistry(t, { basic: true });
  const asked = async () => (await readFile(path.join(directory, 'asked'), 'utf8')).split('\n');
  await helperIn(directory, '{"Username":"me","Secret":"secret"}');
  await writeFile(file, JSON.stringify({ credHelpers: { [host]: 'test' }, other: { kept: true } }));
  await golden(at('golden'));
  await pushing(at('golden'), 'v1', `${host}/a:v1`, PLAIN);
  const place = await loginToRegistry(host, { username: 'me', password: 'secret' }, PLAIN);
  t.is(place, 'docker-credential-test');
  t.true(await logoutOfRegistry(host));
  t.deepEqual((await asked()).slice(1), [
    `store {"ServerURL":"${host}","Username":"me","Secret":"secret"}`,
    `erase ${host}`,
    '',
  ]);
  t.notRegex(await readFile(file, 'utf8'), /secret/);

  // What a broken helper says may be a secret.
  for (const [answer, exit, says] of [
    ['secret', 0, /test gave no credentials: its answer is not/],
    ['the keyring is locked', 1, /test gave no credentials: the keyring is locked/],
  ] as const) {
    await helperIn(directory, answer, exit);
    const work = pushing(at('golden'), 'v2', `${host}/a:v2`, PLAIN);
    const { message } = await failure(t, work, 'PCOW_PERMISSION', says);
    t.notRegex(message, /secret/);
  }
  await helperIn(directory, 'credentials not found in native keychain', 1);
  const unknown = pushing(at('golden'), 'v2', `${host}/a:v2`, PLAIN);
  t.regex((await failure(t, unknown, 'PCOW_PERMISSION', /refuses/)).next ?? '', /pcow login/);

  await writeFile(file, JSON.stringify({ other: { kept: true } }));
  await loginToRegistry(host, { username: 'me', password: 'secret' }, PLAIN);
  t.like(JSON.parse(await readFile(file, 'utf8')), { other: { kept: true } });
});

test.serial('certificates are found where podman and docker keep them', async (t) => {
  const { at, directory } = await bench(t);
  await ownCredentials(directory);
  const home = process.env.HOME;
  process.env.HOME = directory;
  t.teardown(() => (process.env.HOME = home));
  const [tls, client] = [makeCertificate(directory), makeCertificate(directory, 'client')];
  const host = await startRegistry(t, { tls, clients: client });
  await golden(at('golden'));
  const push = () => pushing(at('golden'), 'v1', `${host}/a:v1`, {});
  const folder = path.join(directory, '.config/containers/certs.d', host);
  await mkdir(folder, { recursive: true });
  await failure(t, push(), 'PCOW_IO', /self-signed/);
  await copyFile(tls.certificate, path.join(folder, 'ca.crt'));
  await copyFile(client.certificate, path.join(folder, 'me.cert'));
  await failure(t, push(), 'PCOW_INVALID', /me\.cert has no key/);
  await copyFile(client.key, path.join(folder, 'me.key'));
  await push();
  t.regex(await skopeo('inspect', '--raw', `docker://${host}/a:v1`), /vnd\.pcow/);
  await pullImage(`${host}/a:v1`, at('copy'));
  await isSame(t, [at('golden'), 'v1'], [at('copy'), 'v1']);
  await writeFile(path.join(folder, 'ca.crt'), 'nothing');
  await failure(t, pullImage(`${host}/a:v1`, at('other')), 'PCOW_IO', /self-signed/);
  const missing = { certificates: [path.join(directory, 'missing.pem')] };
  await failure(t, pullImage(`${host}/a:v1`, at('other'), missing), 'PCOW_INVALID', /missing\.pem/);
});
