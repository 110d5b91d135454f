/**
 * One image of a mounted directory: its opening, who has its flat file open, and what went wrong last.
 *
 * It is opened read-only when it is first looked at, and for writing (which takes the image's lock) at the first open
 * for writing or the first command; it stays so until the mount ends, the image file goes away, or others need its descriptors while
 * nobody uses it.
 *
 * Order of locks: `commands` is held by everything that changes the image's structure. Opening, reading and writing a
 * flat file never wait for it, because a snapshot needs them to get its mappers' pages written back. They only wait
 * while the image is shut (exclusively), and nothing that runs then needs a flat file.
 */
import { stat } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

import type { Monitor } from '../../attach/monitor.js';
import { isPcowError, type LongOptions, PcowError, type SnapshotInfo } from '../../engine/index.js';
import { Attachment } from './attachment.js';
import { ChecksumMaking } from './checksum-making.js';
import { refusal, sentenceOf } from '../failure.js';
import { type LastError, lastErrorOf } from '../control/last-error.js';
import { log } from '../log.js';
import { type ImageState, stateOfCode } from '../../images/image-states.js';
import { Mutex } from '../../engine/mutex.js';
import type { Opening } from './opening.js';
import { Openings } from './openings.js';
import { flatFilePath, type Place } from '../place.js';
import type { Traffic } from './traffic.js';
import { Work } from './work.js';

/** Milliseconds: the kernel sends the release of a closed file after close(2) has returned. */
const RELEASE_GRACE = 500;

/** What stat(2) says of an image file, as far as the mount passes it on. */
export interface FileStatus {
  device: bigint;
  inode: bigint;
  mode: number;
  uid: number;
  gid: number;
  /** 512-byte units. */
  blocks: number;
  /** Milliseconds. */
  accessed: number;
  modified: number;
  changed: number;
  regular: boolean;
}

export async function fileStatus(file: string): Promise<FileStatus> {
  const status = await stat(file, { bigint: true });
  return {
    device: status.dev,
    inode: status.ino,
    mode: Number(status.mode),
    uid: Number(status.uid),
    gid: Number(status.gid),
    blocks: Number(status.blocks),
    accessed: Number(status.atimeMs),
    modified: Number(status.mtimeMs),
    changed: Number(status.ctimeMs),
    regular: status.isFile(),
  };
}

/** Somebody's open flat file, or open file of a snapshot. */
export interface FlatFileUse {
  entry: ImageEntry;
  opening: Opening;
  /** null: the flat file itself. */
  snapshot: string | null;
  writable: boolean;
  /** Where its bytes are served natively. */
  handle: number | null;
}

/** How often, and for how long in all, processes were stopped for a snapshot. */
export interface StopTimes {
  count: number;
  seconds: number;
}

export class ImageEntry {
  /** Held by every change of structure; see above. */
  readonly commands = new Mutex();
  /** Whether this mount writes it, or the monitor of another process. */
  readonly attachment: Attachment;
  readonly uses = new Set<FlatFileUse>();
  /** Processes that have it mapped through a monitor to read; each has a use, too. */
  readonly readers = new Set<Monitor>();
  /** Commands done since the mount began, by their name. */
  readonly done = new Map<string, number>();
  readonly checksums = new ChecksumMaking();
  readonly stops: StopTimes = { count: 0, seconds: 0 };
  #lastFailed: LastError | null = null;
  /** What it holds `commands` for, where that takes long. */
  work: Work | null = null;

  /** The name in the mount; changes by `mv`. */
  name: string;
  /** The image file; changes with the name. */
  file: string;
  /** Device and inode of the image file: another file with this name is another entry. */
  readonly identity: string;

  readonly #place: Place;
  readonly #refused: PcowError | null;
  readonly #openings: Openings;
  /** Opens that have not become a use yet. */
  #pending = 0;
  #shut: { scope: UseScope; end: Promise<void> } | null = null;

  /** `refused`: why the file must not even be opened. */
  constructor(place: Place, name: string, file: string, identity: string, refused: PcowError | null) {
    this.#place = place;
    this.name = name;
    this.file = file;
    this.identity = identity;
    this.#refused = refused;
    this.#openings = new Openings(this, place, refused, () => this.#closeIdleWriter());
    this.attachment = new Attachment(this, this.#openings);
  }

  /** The image for looking at: the writer's opening where there is one. */
  view(): Promise<Opening> {
    return this.#openings.view();
  }

  /** The image for changing it: takes its lock, or fails with PCOW_LOCKED and the name of the process that has it. */
  async writer(): Promise<Opening> {
    const { refusal } = this.#openings;
    if (refusal) {
      throw refusal;
    }
    await this.attachment.settled();
    const { monitor } = this;
    if (monitor) {
      throw this.attachment.attachedTo(monitor);
    }
    return this.attachment.writer();
  }

  /**
   * What changes the image at present: a monitor, or this mount, which has it open for writing then. A process that comes to this mount
   * with the lock, while this waits for the lock, has it.
   */
  async whoeverHas(): Promise<{ monitor: Monitor; opening: null } | { monitor: null; opening: Opening }> {
    for (;;) {
      await this.attachment.settled();
      const { monitor } = this;
      if (monitor) {
        return { monitor, opening: null };
      }
      try {
        return { monitor: null, opening: await this.writer() };
      } catch (error) {
        if (!this.monitor) {
          throw error;
        }
      }
    }
  }

  /** Of the process that writes the image through its own memory instead of this mount. */
  get monitor(): Monitor | null {
    return this.attachment.monitor;
  }

  /** Its path in the mount. */
  get flatFile(): string {
    return flatFilePath(this.#place, this.name);
  }

  /** In the background, where the mount is to: after a snapshot, and after the monitor that may have taken some. */
  makeChecksums(): void {
    if (!this.#place.settings.checksums || this.attachment.state !== 'detached') {
      return;
    }
    this.checksums.start(
      async () => {
        // Not after a wait: lend() waits for this.
        if (this.attachment.state !== 'detached') {
          throw new PcowError('PCOW_CANCELLED', `${this.name} is attached`);
        }
        return (await this.attachment.writer()).image;
      },
      (error) => {
        if (this.attachment.state === 'detached') {
          this.failed('checksums', error);
        }
      },
    );
  }

  /** Requests on the flat file since the mount began. */
  traffic(): Traffic {
    return this.#openings.traffic();
  }

  /** Whether this mount has it open for writing. */
  get held(): boolean {
    return this.#openings.present !== null;
  }

  /** 'ok', or what is wrong with it, and the error that told so. */
  async state(): Promise<{ state: ImageState; problem: string | null; error: unknown }> {
    try {
      await this.view();
      return { state: 'ok', problem: null, error: null };
    } catch (error) {
      return { state: stateOf(error, this.#refused), problem: sentenceOf(error), error };
    }
  }

  /** Opens the flat file, or that of a snapshot, for somebody. The caller ends it with close(). */
  async open(snapshot: string | null, writable: boolean): Promise<FlatFileUse> {
    while (this.#shut?.scope.covers(snapshot)) {
      await this.#shut.end;
    }
    this.#pending += 1;
    try {
      const opening = await this.#openingFor(snapshot === null && writable);
      const use: FlatFileUse = { entry: this, opening, snapshot, writable, handle: null };
      opening.use();
      this.uses.add(use);
      return use;
    } finally {
      this.#pending -= 1;
    }
  }

  /** Lets go of the image where nobody needs it for writing: null where somebody does. */
  #closeIdleWriter(): Promise<void> | null {
    const needed = !this.commands.idle || this.uses.size > 0 || this.#pending > 0 || this.#shut !== null;
    if (needed || this.attachment.state !== 'detached' || this.checksums.busy) return null;
    return this.commands
      .run(() =>
        this.exclusively(
          everyFile,
          () => Promise.resolve(new PcowError('PCOW_BUSY', `${this.name} is in use again`)),
          () => this.#openings.closeWriter(),
        ),
      )
      .catch((error: unknown) => {
        // That somebody uses it again is no failure.
        if (!isPcowError(error, 'PCOW_BUSY')) this.failed('close', error);
      });
  }

  async #openingFor(writable: boolean): Promise<Opening> {
    for (;;) {
      // An attached process may open its file for writing again, since it writes to its memory. mayOpen() refuses others.
      const opening = (writable ? (await this.whoeverHas()).opening : null) ?? (await this.view());
      if (!opening.ended) {
        return opening;
      }
    }
  }

  close(use: FlatFileUse): void {
    if (this.uses.delete(use)) {
      use.opening.release();
    }
  }

  /** A snapshot by its name. Its data is not counted. */
  async snapshot(name: string): Promise<SnapshotInfo> {
    const { image } = await this.view();
    return image.snapshotInfo(name);
  }

  /** Whether anybody could have the flat file mapped for writing: only who opened it so can. */
  get openForWriting(): boolean {
    return [...this.uses].some(({ writable, snapshot }) => writable && snapshot === null);
  }

  /**
   * Runs work while nobody has the flat file (or the snapshot's, or with `everything` any file of the image) open, and lets nobody open it meanwhile.
   * `commands` must be held. `busy` makes the error for when somebody has.
   */
  async exclusively<T>(scope: UseScope, busy: () => Promise<PcowError>, work: () => Promise<T>): Promise<T> {
    const deadline = Date.now() + RELEASE_GRACE;
    while (this.#pending > 0 || [...this.uses].some((use) => scope.covers(use.snapshot))) {
      if (Date.now() > deadline) {
        throw await busy();
      }
      await sleep(5);
    }
    let reopen!: () => void;
    const end = new Promise<void>((resolve) => {
      reopen = resolve;
    });
    this.#shut = { scope, end };
    try {
      return await work();
    } finally {
      this.#shut = null;
      reopen();
    }
  }

  /** Runs what takes long, so that others can see how far it is, and stop it. `commands` must be held. */
  async long(command: string, text: string, run: (options: LongOptions) => Promise<unknown>): Promise<void> {
    const work = new Work(command, text);
    this.work = work;
    try {
      await run(work.options);
    } finally {
      this.work = null;
    }
  }

  /** Stops the command that `text` names: by its name alone, or with what was written to its control file. */
  cancel(text: string): void {
    const { work } = this;
    if (work === null || (text !== work.command && text !== `${work.command} ${work.text}`)) {
      const instead = work === null ? '' : `: it is ${work.command} ${work.text}`;
      throw new PcowError('PCOW_NOT_FOUND', `${this.name} has no ${JSON.stringify(text)} under way${instead}`);
    }
    work.stop();
  }

  /** Keeps the sentence for `status`, and logs it. */
  failed(command: string, error: unknown): void {
    this.#lastFailed = lastErrorOf(command, error);
    log(`${this.name}: ${command} failed: ${this.#lastFailed.message}`);
  }

  /** Runs a command, and keeps its failure. */
  async orFailed(command: string, work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      this.failed(command, error);
      throw error;
    }
  }

  /** What failed last: a command, or a read, write or fsync that was served natively. */
  get lastError(): LastError | null {
    const command = this.#lastFailed;
    const served = this.#openings.lastError();
    return served && (command === null || served.time > command.time) ? served : command;
  }

  count(command: string): void {
    this.done.set(command, (this.done.get(command) ?? 0) + 1);
  }

  /** The image file is gone, or has given way to another: nobody new gets this one. */
  retire(): void {
    void this.checksums.stop();
    this.#openings.retire();
  }

  /** Syncs and closes, whoever still has a file open: for the end of the mount, and before the image file goes. */
  async shutDown(): Promise<void> {
    await this.checksums.stop();
    await this.#openings.shutDown();
  }
}

/** Which open files stand against a command: those of these snapshots, where null is the flat file itself. */
export interface UseScope {
  covers(snapshot: string | null): boolean;
}

export const flatFileOnly: UseScope = { covers: (snapshot) => snapshot === null };
export const everyFile: UseScope = { covers: () => true };
export function snapshotFile(name: string): UseScope {
  return { covers: (snapshot) => snapshot === name };
}

/**
 * Whether there is something to show: an image, or what can't be read at this moment (no right, no descriptor, a failed disk). That is an error
 * for whoever looks at it, and never an absence, or a backup would leave it out in silence.
 */
export function isShown(state: ImageState): boolean {
  return state === 'ok' || state === 'unreadable';
}

function stateOf(error: unknown, refused: PcowError | null): ImageState {
  if (error === refused && refused?.code === 'PCOW_PERMISSION') {
    return 'outside of the directory';
  }
  return isPcowError(error) ? stateOfCode(error.code) : 'unreadable';
}

/** The refusal of a file that is not to be opened: a symbolic link that leads out of the directory. */
export function leadsOutside(name: string): PcowError {
  return refusal(
    'EPERM',
    'PCOW_PERMISSION',
    `${name} is a symbolic link that leads out of the image directory: move the image there, or mount with --allow-outside-base`,
  );
}

/** The refusal of something that is no file. */
export function noRegularFile(name: string): PcowError {
  return new PcowError('PCOW_NOT_AN_IMAGE', `${name} is not an image: it is no regular file`);
}
