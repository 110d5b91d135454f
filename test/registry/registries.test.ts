/** Push and pull with Debian's registry, and with skopeo between registries and layouts. */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFile, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { Image, PcowError, type PcowErrorCode } from '../../src/engine/index.js';
import {
  loginToRegistry,
  logoutOfRegistry,
  pullImage,
  pushImage,
  type PushOptions,
} from '../../src/registry/index.js';
import { bench, isSame, MiB, reading, snapshotsOf, working } from '../stream/images.js';
import { makeCertificate, startRegistry, startServer, tokenServer } from './servers.js';

const PLAIN = { plainHttp: true };

/** `golden` with the snapshots v1 (4 MiB of random bytes) and v2 (an eighth of that changed). */
async function golden(file: string): Promise<void> {
  await Image.create(file, { size: 64 * MiB });
  await working(file, async (image) => {
    await image.write(randomBytes(4 * MiB), 0);
    await image.snapshot('v1');
    await image.write(randomBytes(MiB / 2), 20 * MiB);
    await image.discard(MiB, MiB);
    await image.snapshot('v2');
  });
}

function pushing(file: string, snapshot: string, reference: string, options: PushOptions) {
  return reading(file, (image) => pushImage(image, snapshot, reference, options));
}

async function failure(
  t: ExecutionContext,
  work: Promise<unknown>,
  code: PcowErrorCode,
  text: RegExp,
): Promise<PcowError> {
  const error = await t.throwsAsync(work, { instanceOf: PcowError });
  t.is(error.code, code, error.message);
  t.regex(error.message, text);
  return error;
}

async function skopeo(...words: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)('skopeo', ['--insecure-policy', ...words]);
  return stdout;
}

/** The file of credentials that this process uses; it is empty, and another one for each test. */
async function ownCredentials(directory: string): Promise<string> {
  const file = path.join(directory, 'auth.json');
  await writeFile(file, '{}');
  process.env.REGISTRY_AUTH_FILE = file;
  return file;
}

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

test.serial('a credential helper is asked, and other keys of the file stay', async (t) => {
  const { directory, at } = await bench(t);
  const file = await ownCredentials(directory);
  const host = await startRegistry(t, { basic: true });
  const helper = path.join(directory, 'docker-credential-test');
  await writeFile(
    helper,
    `#!/bin/sh\nread host; echo "{\\"Username\\":\\"me\\",\\"Secret\\":\\"secret\\"}"\n`,
    {
      mode: 0o755,
    },
  );
  await writeFile(file, JSON.stringify({ credHelpers: { [host]: 'test' }, other: { kept: true } }));
  process.env.PATH = `${directory}:${process.env.PATH ?? ''}`;
  await golden(at('golden'));
  await pushing(at('golden'), 'v1', `${host}/a:v1`, PLAIN);
  await writeFile(file, JSON.stringify({ other: { kept: true } }));
  await loginToRegistry(host, { username: 'me', password: 'secret' }, PLAIN);
  t.like(JSON.parse(await readFile(file, 'utf8')), { other: { kept: true } });
});
