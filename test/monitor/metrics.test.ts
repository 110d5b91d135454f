/**
 * The `metrics` of attached images: one Prometheus text, whose labels name the images as the mount
 * does.
 */
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';

import test from 'ava';

import { MiB, mountedImages } from '../helpers/mount.js';
import { attachedTo, monitored } from '../helpers/monitored.js';
import { program } from '../helpers/program.js';

test.serial('every family once, every sample with the name of its image', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB, vm2: MiB, idle: MiB });
  const file = await program('map-tool', mount.scratch);
  for (const name of ['vm1', 'vm2']) {
    const tool = await monitored(t, file, [mount.file(name)]);
    await attachedTo(mount, name, tool.pid);
    t.is(await tool.ask('write 0 4096 1'), 'ok');
  }
  const texts: [string, string[]][] = [
    [mount.control('vm1', 'metrics'), ['vm1']],
    [path.join(mount.point, '.pcow/metrics'), ['idle', 'vm1', 'vm2']],
  ];
  for (const [metrics, images] of texts) {
    const text = await readFile(metrics, 'utf8');
    let family = '';
    const families: string[] = [];
    for (const line of text.trimEnd().split('\n')) {
      const help = /^# HELP (\w+) \S/.exec(line)?.[1];
      if (help !== undefined) {
        families.push((family = help));
      } else if (line.startsWith('#')) {
        t.regex(line, new RegExp(`^# TYPE ${family} (counter|gauge|histogram)$`));
      } else {
        if (line.startsWith('pcow_clean_store_')) continue; // of the mount
        const [, name = '', image = ''] =
          /^(\w+)\{image="([^"]+)"(?:,\w+="[^"]*")*\} [\d.e+-]+$/.exec(line) ?? [];
        t.true(name.startsWith(family), line);
        t.true(images.includes(image), line);
      }
    }
    t.deepEqual(families, [...new Set(families)]);
    for (const image of images) {
      const [, count] =
        new RegExp(
          `^pcow_fault_seconds_count\\{image="${image}",kind="expansion"\\} (\\d+)$`,
          'm',
        ).exec(text) ?? [];
      t.is(count === undefined, image === 'idle', image);
    }
  }
});

test.serial('promtool finds no fault, with a guest attached and a damaged image', async (t) => {
  const mount = await mountedImages(t, { vm1: MiB, idle: MiB, damaged: MiB });
  await writeFile(mount.image('damaged'), Buffer.alloc(8192, 7), { flag: 'r+' });
  const tool = await monitored(t, await program('map-tool', mount.scratch), [mount.file('vm1')]);
  await attachedTo(mount, 'vm1', tool.pid);
  t.is(await tool.ask('write 0 4096 1'), 'ok');
  await mount.write('s', 'vm1', 'snapshot');
  const text = await readFile(path.join(mount.point, '.pcow/metrics'), 'utf8');
  t.regex(text, /^pcow_image_state\{image="damaged",state="(?!ok)[\w ]+"\} 1$/m);
  t.is(await promtool('check metrics', text), '');
});

test('promtool accepts the example alerts', async (t) => {
  t.regex(
    await promtool('check rules packaging/prometheus/pcow-alerts.yml'),
    /SUCCESS: \d+ rules found/,
  );
});

/** Its output; or the test fails. */
async function promtool(command: string, input = ''): Promise<string> {
  const child = execFile('build/promtool', command.split(' '));
  const said: string[] = [];
  for (const stream of [child.stdout, child.stderr])
    stream?.on('data', (data: string) => said.push(data));
  child.stdin?.end(input);
  const [code] = (await once(child, 'close')) as [number];
  if (code !== 0) throw new Error(`promtool ${command}: exit code ${code}: ${said.join('')}`);
  return said.join('');
}
