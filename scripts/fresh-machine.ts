/**
 * Runs in the chroot that scripts/fresh-machine has made: what the README says, word by word.
 * Prints a line of TAP for each step.
 */
import { execFile } from 'node:child_process';
import { copyFile, mkdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { comparable, stepsOf } from './readme-tour.js';

const [root = ''] = process.argv.slice(2);
const readme = await readFile(new URL('../../README.md', import.meta.url), 'utf8');
let failures = 0;
/** The chroot has the certificates that this machine trusts: its package proxy may have its own. */
let hasCertificates = false;

/** A shell command in the chroot, in an environment like that of a login. */
async function inside(
  directory: string,
  command: string,
): Promise<{ output: string; errors: string; ok: boolean }> {
  const environment = [
    'HOME=/root',
    ...(hasCertificates ? ['NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt'] : []),
    'TERM=dumb',
    'LANG=C.UTF-8',
    'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
  ];
  const words = [
    'chroot',
    root,
    '/usr/bin/env',
    '-i',
    ...environment,
    'bash',
    '-c',
    `cd ${directory} && ${command}`,
  ];
  return new Promise((resolve) => {
    execFile('setsid', words, { maxBuffer: 1 << 26 }, (error, stdout, stderr) => {
      resolve({ output: stdout, errors: stderr, ok: error === null });
    });
  });
}

function tell(ok: boolean, what: string, details: string): void {
  console.log(`${ok ? 'ok' : 'not ok'} - ${what}`);
  if (!ok) {
    failures += 1;
    console.log(details.replaceAll(/^/gm, '  # '));
  }
}

/**
 * A walk (scripts/walks) from beginning to end: it prints what it does, and ends at the first
 * failure.
 */
async function walk(name: string, words = ''): Promise<void> {
  const { output, errors, ok } = await inside('/srv/walks', `./${name} ${words}`);
  tell(ok, `the walk ${name}`, output + errors);
  if (ok) console.log(output.trimEnd().replaceAll(/^/gm, '  # '));
}

async function succeeds(directory: string, command: string, says = /(?:)/): Promise<void> {
  const { output, errors, ok } = await inside(directory, command);
  tell(ok && says.test(output), command, output + errors);
}

/** The line in the README's shell blocks that contains this text. */
function lineWith(text: string): string {
  const line = readme.split('\n').find((it) => it.includes(text) && !it.startsWith('|'));
  if (line === undefined) throw new Error(`the README has no line with ${text}`);
  return line.replace(/ +#.*$/, '');
}

async function tour(): Promise<void> {
  await mkdir(path.join(root, 'srv/vm'), { recursive: true });
  for (const { command, prints } of stepsOf(readme)) {
    const { output, errors, ok } = await inside('/srv/vm', command);
    const as = comparable(output, '/srv/vm');
    tell(
      ok && as === comparable(prints, '/srv/vm'),
      command,
      `${output}${errors}\nwanted:\n${prints}`,
    );
  }
  await inside('/srv', 'rm -rf vm');
}

await succeeds('/srv/pcow', lineWith('apt-get install -y ./build/pcow_'));
await tour();

// What the package has in addition to the README's tour.
const stage = 'mkdir -p images mnt && pcow create images/vm1 1G';
await succeeds('/srv', stage, /created/);
await succeeds('/srv', 'mount -t fuse.pcow images mnt && pcow list mnt && umount mnt', /vm1/);
await succeeds(
  '/srv',
  'echo "/srv/images /srv/mnt fuse.pcow ro,nofail 0 0" >> /etc/fstab && mount mnt && findmnt -no FSTYPE,OPTIONS mnt && umount mnt',
  /fuse\.pcow ro/,
);
await succeeds(
  '/',
  'apt-get install -y --no-install-recommends man-db systemd bash-completion > /dev/null 2>&1; for page in pcow pcow-img mount.fuse.pcow; do man -w $page || exit 1; done',
  /man8\/mount\.fuse\.pcow/,
);
// It fails if a minimal Debian lacks a file to which another one links; its output is what matters.
await succeeds(
  '/',
  '/lib/systemd/systemd-sysctl --cat-config || true',
  /^vm\.max_map_count = 1048576$/m,
);
await succeeds('/', 'systemd-analyze verify /lib/systemd/system/pcow@.service');
await succeeds(
  '/',
  "bash -ic '. /usr/share/bash-completion/bash_completion; _completion_loader pcow; complete -p pcow'",
  /_pcow/,
);
await succeeds('/', 'test "$(pcow --version)" = "$(dpkg-query -W -f \'${Version}\' pcow)"');
await succeeds(
  '/',
  'cd /usr/share/doc/pcow && zgrep -q "^pcow (" changelog.gz && grep -q "^== Node.js" copyright && grep -q LGPL copyright',
);
await succeeds('/', 'apt-get install -y --no-install-recommends qemu-utils > /dev/null');
await walk('qemu-img-user');
await walk('platform');
await succeeds(
  '/srv',
  'mkdir -p used && pcow mount images used && cd used && ! apt-get remove -y pcow && pcow list',
);
await succeeds(
  '/',
  'apt-get remove -y pcow && ! command -v pcow && ! ls /usr/lib/pcow && ! findmnt -rn -t fuse.pcow',
);

// The npm package compiles its native code during installation, with this machine's Node, because
// Debian 12 has an older one.
await inside('/', 'apt-get install -y --no-install-recommends ca-certificates');
await succeeds('/', lineWith('apt-get install -y build-essential'));
await copyFile(
  '/etc/ssl/certs/ca-certificates.crt',
  path.join(root, 'etc/ssl/certs/ca-certificates.crt'),
);
hasCertificates = true;
const tools = `cp $(readlink -f "$(command -v node)") ${root}/usr/local/bin/node && mkdir -p ${root}/usr/local/lib/node_modules && cp -r "$(npm root -g)/npm" ${root}/usr/local/lib/node_modules/ && for name in npm npx; do ln -sf ../lib/node_modules/npm/bin/$name-cli.js ${root}/usr/local/bin/$name; done`;
await new Promise((resolve) => execFile('bash', ['-c', tools], resolve));
await succeeds('/srv/pcow', lineWith('npm install -g ./build/pcow-'));
await tour();
await walk('library-user', '/srv/pcow/build/pcow-*.tgz');
await succeeds('/srv/pcow', 'npm install -g --ignore-scripts ./build/pcow-*.tgz');
const { errors, ok } = await inside('/srv', 'pcow info images/vm1');
const advice = /build it with “([^”]+)”/.exec(errors)?.[1] ?? 'false';
tell(!ok && advice !== 'false', 'without install scripts pcow says how to build', errors);
await succeeds('/srv', `${advice} && pcow info images/vm1`, /1 GiB/);
await succeeds('/', 'npm uninstall -g pcow && ! command -v pcow && ! findmnt -rn -t fuse.pcow');

process.exitCode = failures === 0 ? 0 : 1;
