/**
 * Threads that do at random what programs do to a mapping (test/programs/random-mapper.c), with
 * snapshots and clones (random-checker.c), rollbacks, and deaths of the process and of its mounts,
 * while the base is used, and a clone has its own guest (random-neighbours.ts). The bytes of some
 * bases are still in a registry, which fails now and then. Everything that was stored is kept, each
 * snapshot is a consistent cut, and does not change. Nothing waits forever.
 */
import { execFile } from 'node:child_process';
import { open, readdir } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import test, { type ExecutionContext } from 'ava';

import { checkImage, Image } from '../../src/engine/index.js';
import { effort } from '../helpers/effort.js';
import { attachedTo, environmentOf, monitorPrefix } from '../helpers/monitored.js';
import { anyStore, imagesFor, MiB, type TestMount } from '../helpers/mount.js';
import { Conversation, program } from '../helpers/program.js';
import { Random, seedFromEnvironment } from '../helpers/random.js';
import { Base, Side } from '../helpers/random-neighbours.js';
import type { MoodyRegistry } from '../registry/moody.js';
import { scratchDirectory } from '../helpers/scratch.js';

const run = promisify(execFile);
const SECONDS = effort(6, 300, 'PCOW_RANDOM_SECONDS');
const THREADS = 4;
/** Bytes of a log in random-model.h: two counters, then the steps. */
const LOG = 16 + 4 * (1 << 22);

/** From scripts/mapper: the same program with a monitor that was built with a sanitizer. */
const SANITIZED = process.env.PCOW_RANDOM_MAPPER;

const counts: Record<string, number> = {};

function count(what: string, by = 1): void {
  counts[what] = (counts[what] ?? 0) + by;
}

/** The progress of the threads, as counted by random-model.h, which a rollback resets. */
async function counters(model: string, values?: Buffer[]): Promise<Buffer[]> {
  const file = await open(model, 'r+');
  const found: Buffer[] = [];
  for (let thread = 0; thread < THREADS; ++thread) {
    if (values) await file.write(values[thread]!, 0, 16, thread * LOG);
    found.push((await file.read(Buffer.alloc(16), 0, 16, thread * LOG)).buffer);
  }
  await file.close();
  return found;
}

/** An image on a base, and everything that happens to it. */
class Scene {
  #snapshots = 0;
  #side: Side | null = null;
  /** A snapshot from between two lives of the process, and the threads' progress at that time. */
  #mark: { name: string; counters: Buffer[] } | null = null;
  steps = 0;

  private constructor(
    readonly mount: TestMount,
    readonly random: Random,
    readonly model: string,
    /** A directory of a filesystem with direct I/O. */
    readonly disk: string,
    readonly base: Base,
    /** From which its bytes come; null: they are here. */
    readonly registry: MoodyRegistry | null,
    readonly programs: { mapper: string[]; checker: string; tool: string },
  ) {}

  static async make(t: ExecutionContext<unknown>, random: Random): Promise<Scene> {
    // Without a disk there are many more steps.
    const mount = await imagesFor(t, {}, random.chance(0.7) ? '/dev/shm' : undefined);
    const disk = await scratchDirectory(t);
    const tool = await program('map-tool', disk);
    const { base, registry } = random.chance(0.4)
      ? await Base.makeLazily(mount, random, tool)
      : {
          base: await Base.make(mount, random, tool, random.pick([4096, 65536, 65536, 2 * MiB])),
          registry: null,
        };
    if (registry) count('lazy bases');
    await Image.create(mount.image('vm1'), {
      base: { path: mount.image('base'), snapshot: Base.snapshot },
    });
    await mount.mount(...anyStore(random));
    const model = path.join(await scratchDirectory(t, '/dev/shm'), 'model');
    const settings: Record<string, string> = {
      ...(random.chance(0.5) && { PCOW_MAPPING_BUDGET: '100' }),
      ...(random.chance(0.5) && { PCOW_DEMOTE_ALWAYS: '1' }),
    };
    const mapper = SANITIZED
      ? ['env', ...environmentOf(settings), SANITIZED]
      : [...monitorPrefix(settings), await program('random-mapper', disk)];
    const checker = await program('random-checker', disk);
    return new Scene(mount, random, model, disk, base, registry, { mapper, checker, tool });
  }

  /** The process maps the image, and works until it is ended or killed. */
  async life(end: number): Promise<void> {
    const { mount, random, model } = this;
    const { t } = mount;
    const [command = '', ...words] = [...this.programs.mapper, model, mount.file('vm1'), this.disk];
    const worker = Conversation.begin(t, command, ...words, `${random.below(1e9)}`);
    const taker = Conversation.begin(
      t,
      this.programs.checker,
      ...[model, mount.point, 'vm1', `${random.below(1e9)}`, `${this.#snapshots}`],
    );
    let isOver = false;
    const over = Promise.race([worker.closed, taker.closed]).then(() => (isOver = true));
    await Promise.race([attachedTo(mount, 'vm1', worker.pid), over]);
    if (this.#mark && random.chance(0.5))
      this.#side = await Side.begin(mount, this.programs.tool, this.#mark.name);

    for (let left = 1 + random.below(25); left > 0 && !isOver && Date.now() < end; --left)
      await this.#scene(worker.pid, over);

    const dies = random.chance(0.5);
    if (dies) {
      if (random.chance(0.2)) await this.#mountDies(worker.end('SIGKILL'));
      else await worker.end('SIGKILL');
      count('SIGKILL of the process');
    }
    const [answer, taken] = await Promise.all([
      dies ? 'ok' : worker.endWithAnswer(),
      taker.endWithAnswer(),
    ]);
    t.is(answer, 'ok');
    const snapshots = Number(/^(\d+) snapshots$/.exec(taken)?.[1]);
    t.false(Number.isNaN(snapshots), taken);
    count('snapshots', snapshots);
    this.#snapshots += snapshots;
    await attachedTo(mount, 'vm1', null);
    await this.#look();
    await this.#side?.end(random);
    this.#side = null;
    await this.#betweenLives();
  }

  async #scene(pid: number, over: Promise<unknown>): Promise<void> {
    const { mount, random } = this;
    switch (random.weighted({ base: 6, side: 3, pause: 3, death: 2, umount: 1, registry: 2 })) {
      case 'base':
        return this.base.use();
      case 'side':
        return this.#side?.use(random);
      case 'registry':
        return this.#registryFails();
      case 'pause':
        return sleep(random.below(500));
      case 'death':
        await this.#mountDies(random.chance(0.5) ? this.base.use() : sleep(random.below(50)));
        break;
      case 'umount':
        // It is refused if a process has a file of this mount open.
        if (!(await mount.unmountIfIdle())) return;
        count('umounts');
        await sleep(random.below(100));
        await this.#nextMount();
    }
    // The process finds the next mount by itself.
    await Promise.race([attachedTo(mount, 'vm1', pid), over]);
  }

  /** For a while, whoever waits for it. */
  async #registryFails(): Promise<void> {
    await this.registry?.change();
    await sleep(this.random.below(300));
    await this.registry?.be('well');
  }

  /** In the middle of an operation that may fail because of it. */
  async #mountDies(work: Promise<void>): Promise<void> {
    const worked = work.catch(() => undefined);
    await sleep(this.random.below(60));
    await this.mount.kill();
    await worked;
    count('SIGKILL of a mount');
    if (this.random.chance(0.5)) await sleep(this.random.below(300));
    await this.#nextMount();
  }

  async #nextMount(): Promise<void> {
    await this.mount.mount(...anyStore(this.random));
    await this.base.settle();
  }

  /** Everything that was done is kept. */
  async #look(): Promise<void> {
    const { stdout } = await run(this.programs.checker, [this.model, this.mount.file('vm1')]);
    this.steps = Number(stdout);
  }

  async #betweenLives(): Promise<void> {
    const { mount, random } = this;
    if (this.#mark && random.chance(0.3)) {
      await mount.write(this.#mark.name, 'vm1', 'rollback');
      await counters(this.model, this.#mark.counters);
      await this.#look();
      count('rollbacks');
    }
    for (const name of await readdir(mount.control('vm1', 'at'))) {
      if (name === this.#mark?.name && random.chance(0.7)) continue;
      await mount.write(name, 'vm1', 'delete');
      if (name === this.#mark?.name) this.#mark = null;
    }
    if (this.#mark) return;
    this.#mark = { name: `m${this.#snapshots}`, counters: await counters(this.model) };
    await mount.write(this.#mark.name, 'vm1', 'snapshot');
  }

  async end(): Promise<void> {
    await this.base.endGuest();
    await this.mount.unmount();
    for (const name of ['vm1', 'base', ...(this.registry ? ['golden'] : [])])
      this.mount.t.deepEqual((await checkImage(this.mount.image(name))).findings, [], name);
    count('steps', this.steps);
    for (const [what, times] of Object.entries(this.base.done)) count(`base: ${what}`, times);
  }
}

test.serial(
  'whatever a program does to its mapping, nothing is lost, and no snapshot changes',
  async (t) => {
    t.timeout((SECONDS + 300) * 1000);
    const random = new Random(seedFromEnvironment());
    t.log(`PCOW_SEED=${random.seed}`);
    const end = Date.now() + SECONDS * 1000;
    while (Date.now() < end) {
      const scene = await Scene.make(t, random);
      // Make a new image before a thread has filled its log.
      for (let lives = 1 + random.below(4); lives > 0 && Date.now() < end; --lives)
        await scene.life(end);
      await scene.end();
    }
    t.log(counts);
  },
);
