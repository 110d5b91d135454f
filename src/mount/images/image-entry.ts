/**
 * One image of a mounted directory: its openings, the users of its flat file, and its last error.
 *
 * It is opened read-only when it is first read, and for writing (which takes the image's lock) at
 * the first open for writing or the first command. It stays so until the mount ends, the image file
 * disappears, or other images need its descriptors while it is unused.
 *
 * Order of locks: every change of the image's structure holds `commands`. Opening, reading and
 * writing a flat file never wait for `commands`, because a snapshot needs these requests to get its
 * mappers' pages written back. They wait only while the image is shut (exclusively()), and work
 * that runs then needs no flat file.
 */
import { stat } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

import type { Monitor } from '../../attach/monitor.js';
import { isPcowError, type LongOptions, PcowError, type SnapshotInfo } from '../../engine/index.js';
import { Attachment } from './attachment.js';
import { ChecksumMaking } from './checksum-making.js';
import { Fetching, type Pinned } from './fetching.js';
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

/** The part of an image file's stat(2) that the mount passes on. */
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

/** An open flat file, or open file of a snapshot. */
export interface FlatFileUse {
  entry: ImageEntry;
  opening: Opening;
  /** null: the flat file itself. */
  snapshot: string | null;
  writable: boolean;
  /** The number of the native handle, if its bytes are served natively. */
  handle: number | null;
}

/** How often, and how long altogether, processes were stopped for a snapshot. */
export interface StopTimes {
  count: number;
  seconds: number;
}

export class ImageEntry {
  /** Held by every change of structure; see above. */
  readonly commands = new Mutex();
  /** Says whether this mount writes the image, or the monitor of another process. */
  readonly attachment: Attachment;
  readonly #uses = new Set<FlatFileUse>();
  /** While there is a grant, files may be open whose uses are not in #uses yet. */
  grant: { takeBack(): void } | null = null;
  /** Processes that have the image mapped read-only through a monitor; each has a use, too. */
  readonly readers = new Set<Monitor>();
  /** Commands done since the mount began, by their name. */
  readonly done = new Map<string, number>();
  readonly checksums = new ChecksumMaking();
  readonly fetching = new Fetching(this, () => this.#pinned());
  readonly stops: StopTimes = { count: 0, seconds: 0 };
  /** The image file is gone, or was replaced. */
  retired = false;
  #lastFailed: LastError | null = null;
  /** The long command for which `commands` is held. */
  work: Work | null = null;

  /** The name in the mount; `mv` changes it. */
  name: string;
  /** The image file; changes with the name. */
  file: string;
  /** Device and inode of the image file: another file with this name is another ImageEntry. */
  readonly identity: string;

  readonly #place: Place;
  readonly #refused: PcowError | null;
  readonly #openings: Openings;
  /** Open calls that have not become a use yet. */
  #pending = 0;
  #shut: { scope: UseScope; end: Promise<void> } | null = null;

  /** `refused`: why the file must not be opened at all. */
  constructor(
    place: Place,
    name: string,
    file: string,
    identity: string,
    refused: PcowError | null,
  ) {
    this.#place = place;
    this.name = name;
    this.file = file;
    this.identity = identity;
    this.#refused = refused;
    this.#openings = new Openings(this, place, refused, () => this.#closeIdleWriter());
    this.attachment = new Attachment(this, this.#openings);
  }

  get uses(): ReadonlySet<FlatFileUse> {
    this.grant?.takeBack();
    return this.#uses;
  }

  /**
   * Whether the native operations may open the flat file with this opening of the image, any number
   * of times, until something reads `uses`.
   */
  mayGrant({ ended }: Opening): boolean {
    return (
      this.grant === null &&
      !this.retired &&
      !ended &&
      this.attachment.state === 'detached' &&
      this.#shut === null
    );
  }

  /** The image for reading: the writer's opening if there is one. */
  view(): Promise<Opening> {
    return this.#openings.view();
  }

  /**
   * The image for changing it. Takes its lock, or fails with PCOW_LOCKED and the name of the
   * process that has it.
   */
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
   * Returns the present writer of the image: a monitor, or this mount, which then has it open for
   * writing. If a process comes to this mount with the lock while this waits for the lock, that
   * process is the writer.
   */
  async whoeverHas(): Promise<
    { monitor: Monitor; opening: null } | { monitor: null; opening: Opening }
  > {
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

  /** The monitor of the process that writes the image instead of this mount. */
  get monitor(): Monitor | null {
    return this.attachment.monitor;
  }

  /** Its path in the mount. */
  get flatFile(): string {
    return flatFilePath(this.#place, this.name);
  }

  /**
   * Makes checksums in the background if the mount has that option: after a snapshot, and after a
   * monitor that may have taken some.
   */
  makeChecksums(): void {
    if (!this.#place.settings.checksums || this.attachment.state !== 'detached') {
      return;
    }
    this.checksums.start(
      async () => {
        // Do not wait here: lend() waits for this.
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

  /** The image open for writing, which stays open until `release` is called. */
  async #pinned(): Promise<Pinned> {
    for (;;) {
      const opening = await this.writer();
      if (opening.ended) continue;
      opening.use();
      return {
        image: opening.image,
        release: () => {
          opening.release();
        },
      };
    }
  }

  /** The long commands in progress: at most one that changes the image, and one that fetches. */
  get works(): Work[] {
    return [this.work, this.fetching.work].filter((work) => work !== null);
  }

  /** Requests on the flat file since the mount began. */
  traffic(): Traffic {
    return this.#openings.traffic();
  }

  /** Whether this mount has the image open for writing. */
  get held(): boolean {
    return this.#openings.present !== null;
  }

  /** 'ok', or what is wrong with the image, and the error that shows it. */
  async state(): Promise<{ state: ImageState; problem: string | null; error: unknown }> {
    try {
      await this.view();
      return { state: 'ok', problem: null, error: null };
    } catch (error) {
      return { state: stateOf(error, this.#refused), problem: sentenceOf(error), error };
    }
  }

  /** Opens the flat file, or that of a snapshot. The caller must call close() with the result. */
  async open(snapshot: string | null, writable: boolean): Promise<FlatFileUse> {
    while (this.#shut?.scope.covers(snapshot)) {
      await this.#shut.end;
    }
    this.#pending += 1;
    try {
      const opening = await this.#openingFor(snapshot === null && writable);
      return this.use({ entry: this, opening, snapshot, writable, handle: null });
    } finally {
      this.#pending -= 1;
    }
  }

  /** Registers a use. The caller must call close() with it. */
  use(use: FlatFileUse): FlatFileUse {
    use.opening.use();
    this.#uses.add(use);
    return use;
  }

  /** Closes the writer's opening if nothing needs it. Returns null if something does. */
  #closeIdleWriter(): Promise<void> | null {
    const needed =
      !this.commands.idle || this.uses.size > 0 || this.#pending > 0 || this.#shut !== null;
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
        // It is no failure if the image is used again.
        if (!isPcowError(error, 'PCOW_BUSY')) this.failed('close', error);
      });
  }

  async #openingFor(writable: boolean): Promise<Opening> {
    for (;;) {
      // An attached process may open its file for writing again, because its stores go to its
      // memory. mayOpen() refuses others.
      const opening = (writable ? (await this.whoeverHas()).opening : null) ?? (await this.view());
      if (!opening.ended) {
        return opening;
      }
    }
  }

  close(use: FlatFileUse): void {
    if (this.#uses.delete(use)) {
      use.opening.release();
    }
  }

  /** A snapshot by its name. Its data is not counted. */
  async snapshot(name: string): Promise<SnapshotInfo> {
    const { image } = await this.view();
    return image.snapshotInfo(name);
  }

  /**
   * Whether any process may have the flat file mapped for writing: this requires a use that is open
   * for writing.
   */
  get openForWriting(): boolean {
    return [...this.uses].some(({ writable, snapshot }) => writable && snapshot === null);
  }

  /**
   * Runs `work` while none of the files in `scope` is open, and lets no process open them
   * meanwhile. `commands` must be held. `busy` makes the error if one is open.
   */
  async exclusively<T>(
    scope: UseScope,
    busy: () => Promise<PcowError>,
    work: () => Promise<T>,
  ): Promise<T> {
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

  /**
   * Runs a long command, so that users can see its progress and stop it. `commands` must be held.
   */
  async long(
    command: string,
    text: string,
    run: (options: LongOptions) => Promise<unknown>,
  ): Promise<void> {
    const work = new Work(command, text);
    this.work = work;
    try {
      await run(work.options);
    } finally {
      this.work = null;
    }
  }

  /**
   * Stops the command that `text` names: by its name alone, or with the text that was written to
   * its control file.
   */
  cancel(text: string): void {
    const running = this.works;
    const work = running.find(
      ({ command, text: written }) => text === command || text === `${command} ${written}`,
    );
    if (work === undefined) {
      const [other] = running;
      const instead = other === undefined ? '' : `: it is ${other.command} ${other.text}`;
      throw new PcowError(
        'PCOW_NOT_FOUND',
        `${this.name} has no ${JSON.stringify(text)} in progress${instead}`,
      );
    }
    work.stop();
  }

  /** Keeps the error for `status`, and logs it. */
  failed(command: string, error: unknown): void {
    this.#lastFailed = lastErrorOf(command, error);
    log(`${this.name}: ${command} failed: ${this.#lastFailed.message}`);
  }

  /** Runs a command, and keeps its error. */
  async orFailed(command: string, work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      this.failed(command, error);
      throw error;
    }
  }

  /** The last failure: of a command, or of a read, write or fsync that was served natively. */
  get lastError(): LastError | null {
    const command = this.#lastFailed;
    const served = this.#openings.lastError();
    return served && (command === null || served.time > command.time) ? served : command;
  }

  count(command: string): void {
    this.done.set(command, (this.done.get(command) ?? 0) + 1);
  }

  /** The image file is gone, or was replaced: new users do not get this ImageEntry. */
  retire(): void {
    this.retired = true;
    this.grant?.takeBack();
    void this.checksums.stop();
    void this.fetching.stop();
    this.#openings.retire();
  }

  /**
   * Syncs and closes the image even if files are open: for the end of the mount, and before the
   * image file is removed.
   */
  async shutDown(): Promise<void> {
    await this.checksums.stop();
    await this.fetching.stop();
    await this.#openings.shutDown();
  }
}

/**
 * Which open files forbid a command. `null` stands for the flat file itself, a name for the file of
 * that snapshot.
 */
export interface UseScope {
  covers(snapshot: string | null): boolean;
}

export const flatFileOnly: UseScope = { covers: (snapshot) => snapshot === null };
export const everyFile: UseScope = { covers: () => true };
export function snapshotFile(name: string): UseScope {
  return { covers: (snapshot) => snapshot === name };
}

/**
 * Whether to show the image: it can be opened, or it cannot be read at this moment (no permission,
 * no descriptor, a failed disk). In that case accessing it reports the error. If it were hidden, a
 * backup would silently leave it out.
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

/**
 * The refusal of a file that must not be opened: a symbolic link that leads out of the directory.
 */
export function leadsOutside(name: string): PcowError {
  return refusal(
    'EPERM',
    'PCOW_PERMISSION',
    `${name} is a symbolic link that leads out of the image directory: move the image there, or mount with --allow-outside-base`,
  );
}

/** The refusal of something that is not a regular file. */
export function noRegularFile(name: string): PcowError {
  return new PcowError('PCOW_NOT_AN_IMAGE', `${name} is not an image: it is not a regular file`);
}
