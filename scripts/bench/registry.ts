/**
 * Push to a registry and pull from it, beside `skopeo copy` of the same bytes as a plain layer; and
 * the bytes that are moved when little has changed. The registry is Debian's, on this machine: no
 * link is slow, so this is the time of the programs themselves.
 */
import { createHash, randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { copyFile, mkdir, open, rm, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';

import { Image } from '../../src/engine/index.js';
import { rotated, type Bench, type Comparison } from './comparison.js';
import { pcow, type Stand } from './stand.js';

const MiB = 2 ** 20;
const SYSTEMS = ['pcow', 'skopeo', 'skopeo, gzip'] as const;
type System = (typeof SYSTEMS)[number];

export const registry: Comparison = { name: 'registry', medium: 'disk', run, plots: () => ({}) };

async function run(bench: Bench): Promise<void> {
  for (const content of ['random bytes', 'programs and texts']) await everything(bench, content);
  await changes(bench);
}

/** Push and pull of everything. */
async function everything({ stand, record, short, say }: Bench, content: string): Promise<void> {
  const size = (short ? 256 : 2048) * MiB;
  const rounds = short ? 3 : 5;
  const raw = stand.fresh('raw');
  if (content === 'random bytes') await randomFile(raw, size);
  else await diskOfPrograms(stand, raw, size);
  const image = `${stand.fresh('image')}.pcow`;
  await stand.command(process.execPath, pcow, 'convert', raw, image);
  await stand.command(process.execPath, pcow, 'snapshot', `${image}@v1`);
  const layout = stand.fresh('layout');
  await plainLayout(layout, raw);
  for (let round = 0; round < rounds; ++round) {
    say(`registry: ${content}, round ${round + 1} of ${rounds}`);
    for (const system of rotated(SYSTEMS, round)) {
      const { host, end } = await stand.registry();
      const copy = stand.fresh('copy');
      const [push, pull] = commands(system, { image, layout, host, copy });
      for (const [what, words] of [
        ['push', push],
        ['pull', pull],
      ] as const) {
        await stand.command('sync');
        const began = performance.now();
        await stand.command(...words);
        const seconds = (performance.now() - began) / 1000;
        const row = [what, content, `${size / MiB} MiB`];
        const value = size / MiB / seconds;
        record.add({ table: 'everything', row, system, unit: 'MiB/s', better: 'more' }, value);
      }
      await rm(copy, { recursive: true, force: true });
      await rm(`${copy}.pcow`, { force: true });
      await end();
    }
  }
  for (const made of [raw, image, layout]) await rm(made, { recursive: true });
}

/** The commands that push and pull. */
function commands(
  system: System,
  { image, layout, host, copy }: Record<'image' | 'layout' | 'host' | 'copy', string>,
): [string[], string[]] {
  const there = `${host}/bench:v1`;
  if (system === 'pcow') {
    const words = [process.execPath, pcow];
    return [
      [...words, 'push', `${image}@v1`, there, '--plain-http'],
      [...words, 'pull', there, `${copy}.pcow`, '--plain-http'],
    ];
  }
  // It would compress a plain layer.
  const kept = system === 'skopeo' ? ['--preserve-digests'] : [];
  const words = ['skopeo', '--insecure-policy', 'copy', '--quiet'];
  return [
    [...words, ...kept, '--dest-tls-verify=false', `oci:${layout}:v1`, `docker://${there}`],
    [...words, '--src-tls-verify=false', `docker://${there}`, `oci:${copy}:v1`],
  ];
}

/** What the registry is sent, and what it sends, after small changes: MiB on the link. */
async function changes({ stand, record, short, say }: Bench): Promise<void> {
  const [size, changed] = short ? [256, 8] : [4096, 100];
  say(`registry: an update of ${changed} MiB in an image of ${size} MiB`);
  const raw = stand.fresh('raw');
  const image = `${stand.fresh('image')}.pcow`;
  await randomFile(raw, size * MiB);
  const run = (...words: string[]) => stand.command(process.execPath, pcow, ...words);
  await run('convert', raw, image);
  await rm(raw);
  await run('snapshot', `${image}@v1`);
  const { host, end } = await stand.registry();
  const link = await stand.link(host);
  const copy = `${stand.fresh('copy')}.pcow`;
  const moving = async (what: string, ...words: string[]) => {
    const before = link.moved;
    await run(...words, '--plain-http');
    const moved = (link.moved - before) / MiB;
    record.add({ table: 'moved', row: [what], system: 'pcow', unit: 'MiB', better: 'less' }, moved);
  };
  const there = `${link.host}/bench`;
  const whole = `an image of ${size} MiB`;
  const update = `${changed} MiB of it changed, in places of 64 KiB`;
  await moving(`push of ${whole}`, 'push', `${image}@v1`, `${there}:v1`);
  await moving('push of the same once more', 'push', `${image}@v1`, `${there}:v1`);
  await moving(`pull of ${whole}`, 'pull', `${there}:v1`, copy);
  const opened = await Image.open(image, { write: true });
  const step = Math.floor(size / changed) * MiB;
  for (let at = 0; at < changed * 16; ++at)
    await opened.write(randomBytes(65536), Math.floor(at / 16) * step + (at % 16) * 65536);
  await opened.snapshot('v2');
  await opened.close();
  await moving(`push of ${update}`, 'push', `${image}@v2`, `${there}:v2`);
  await moving(`pull of ${update}`, 'pull', `${there}:v2`, copy);
  await end();
  for (const made of [image, copy]) await rm(made);
}

async function randomFile(file: string, size: number): Promise<void> {
  const handle = await open(file, 'w');
  for (let at = 0; at < size; at += MiB) await handle.write(randomBytes(MiB));
  await handle.close();
}

/** The filesystem that docs/registry.md has its sizes from, again and again. */
async function diskOfPrograms(stand: Stand, file: string, size: number): Promise<void> {
  const disk = stand.fresh('disk');
  const trees = [
    '/etc',
    '/usr/sbin',
    '/usr/lib/git-core',
    '/usr/lib/python3.11',
    '/usr/share/perl',
  ];
  await stand.command(
    'bash',
    '-c',
    'mkdir "$1.tree" && cp -a --parents "${@:2}" "$1.tree" 2> /dev/null; ' +
      'mke2fs -q -t ext4 -d "$1.tree" "$1" 256M && rm -r "$1.tree"',
    'disk',
    disk,
    ...trees,
  );
  for (let at = 0; at < size; at += 256 * MiB)
    await stand.command('bash', '-c', `cat ${disk} >> ${file}`);
  await rm(disk);
}

/** An OCI layout with the file as the only layer of an image. */
async function plainLayout(directory: string, file: string): Promise<void> {
  const blobs = path.join(directory, 'blobs/sha256');
  await mkdir(blobs, { recursive: true });
  const put = async (value: unknown, mediaType: string) => {
    const bytes = Buffer.from(JSON.stringify(value));
    const digest = createHash('sha256').update(bytes).digest('hex');
    await writeFile(path.join(blobs, digest), bytes);
    return { mediaType, digest: `sha256:${digest}`, size: bytes.length };
  };
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(file, { highWaterMark: MiB }))
    hash.update(chunk as Buffer);
  const digest = hash.digest('hex');
  await copyFile(file, path.join(blobs, digest));
  const { size } = await stat(file);
  const layer = {
    mediaType: 'application/vnd.oci.image.layer.v1.tar',
    digest: `sha256:${digest}`,
    size,
  };
  const config = await put(
    { architecture: 'amd64', os: 'linux', rootfs: { type: 'layers', diff_ids: [layer.digest] } },
    'application/vnd.oci.image.config.v1+json',
  );
  const type = 'application/vnd.oci.image.manifest.v1+json';
  const manifest = await put({ schemaVersion: 2, mediaType: type, config, layers: [layer] }, type);
  const annotations = { 'org.opencontainers.image.ref.name': 'v1' };
  await writeFile(path.join(directory, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}');
  await writeFile(
    path.join(directory, 'index.json'),
    JSON.stringify({ schemaVersion: 2, manifests: [{ ...manifest, annotations }] }),
  );
}
