/**
 * A process that is attached to an image: the mount sends it one request at a time, and receives
 * its answers.
 */
import { existsSync } from 'node:fs';

import { codeOfAnswer, PcowError } from '../engine/errors.js';
import { type AttachEvent, type AttachServer, type RequestName } from '../engine/attach-server.js';
import { Mutex } from '../engine/mutex.js';
import { halted, running } from './halted.js';

/** Milliseconds for which `status` and `metrics` wait for a busy monitor. */
const PATIENCE = 1000;

/**
 * Milliseconds for which a report is reused: a stat(2) and a read of the same file are two
 * requests.
 */
const FRESH = 250;

/** The answer of a monitor that has released the image. Node has no name for it. */
const ESHUTDOWN = 108;

export interface RequestOptions {
  /** For example the snapshot's name. */
  text?: string;
  value?: number;
  /** Milliseconds; default: no limit. If a monitor takes longer, its connection is closed. */
  limit?: number;
  /**
   * For requests with a waiting caller: the request fails with Halted if the process does not run.
   * If the request was sent, these requests undo it when the process runs again. If it was not
   * sent, it is dropped.
   */
  undo?: UndoRequest[];
  /**
   * The request is sent without a check whether the process runs, and even when no caller waits for
   * it any more.
   */
  must?: boolean;
}

export interface UndoRequest {
  name: RequestName;
  text?: string;
}

/**
 * The process has released the image, or has died, before it answered. The mount is getting the
 * image back.
 */
export class MonitorGone extends PcowError {}

/** The process does not run. What it was asked for does not happen. */
export class Halted extends PcowError {}

export function isGone(error: unknown): boolean {
  return error instanceof MonitorGone;
}

interface Waiting {
  resolve(answer: string): void;
  reject(error: PcowError): void;
}

/** Times in milliseconds. */
interface Report {
  answer: Promise<string | null>;
  asked: number;
  answered: number | null;
}

export class Monitor {
  readonly since = new Date();
  /** As in the kernel (comm). */
  command = '';
  readonly #server: AttachServer;
  readonly #requests = new Mutex();
  /** The request that was sent last: the server allows only one at a time. */
  #waiting: (Waiting & { id: number }) | null = null;
  #handingOver: Waiting | null = null;
  /** Of share(). */
  #opening: Waiting | null = null;
  /** No request is sent before. */
  readonly #ready: Promise<void>;
  #becomeReady: () => void = () => undefined;
  readonly #looks = new Map<number, () => void>();
  #lastId = 0;
  #gone: string | null = null;
  #report: Report | null = null;

  constructor(
    server: AttachServer,
    readonly connection: number,
    readonly pid: number,
    readonly uid: number,
    readonly writable: boolean,
  ) {
    this.#server = server;
    this.#ready = new Promise((resolve) => {
      this.#becomeReady = resolve;
    });
  }

  /** Its name in messages. */
  get process(): string {
    return this.command === '' ? `process ${this.pid}` : `process ${this.pid} (${this.command})`;
  }

  /** Whether this is now a thread of its process. */
  hasThread(thread: number): boolean {
    return thread === this.pid || existsSync(`/proc/${this.pid}/task/${thread}`);
  }

  /**
   * Sends the files of a chain: the image first, with its lock if the monitor will write. For a
   * resumed monitor, only confirms.
   */
  handOver(paths: string[] | 'as before'): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#gone !== null) {
        reject(this.#lost());
        return;
      }
      this.#handingOver = {
        resolve: () => {
          resolve();
        },
        reject,
      };
      if (paths === 'as before') {
        this.#server.confirm(this.connection);
      } else {
        this.#server.handOver(this.connection, paths, this.writable);
      }
    });
  }

  /**
   * Rejects with the monitor's own error, or with MonitorGone if the process releases the image
   * before it has answered.
   */
  request(name: RequestName, options: RequestOptions = {}): Promise<string> {
    const { undo } = options;
    return undo
      ? this.#requestUnlessHalted(name, options, undo)
      : this.#requests.run(() => this.#send(name, options));
  }

  async #requestUnlessHalted(
    name: RequestName,
    options: RequestOptions,
    undo: UndoRequest[],
  ): Promise<string> {
    const over = new AbortController();
    let givenUp: Halted | null = null;
    const answer = this.#requests.run(async () => {
      if (options.must !== true) {
        // A request that has not been sent cannot happen later.
        await running(this.pid, over.signal);
        if (givenUp) {
          throw givenUp;
        }
      }
      try {
        return await this.#send(name, options);
      } finally {
        // Before any other request.
        for (const request of givenUp ? undo : []) {
          await this.#send(request.name, { text: request.text ?? '' }).catch(() => undefined);
        }
      }
    });
    answer.catch(() => undefined);
    const halt = halted(this.pid, over.signal).then((reason) => {
      if (reason !== null) {
        givenUp = new Halted(
          'PCOW_BUSY',
          `${this.process}, which has the image attached, ${reason}, then try again`,
        );
        throw givenUp;
      }
      return '';
    });
    halt.catch(() => undefined);
    try {
      return await Promise.race([answer, halt]);
    } finally {
      over.abort();
    }
  }

  /**
   * Returns when everything that the monitor has sent so far has been handled, including the end of
   * its connection.
   */
  look(): Promise<void> {
    if (this.#gone !== null) {
      return Promise.resolve();
    }
    const id = (this.#lastId += 1);
    const looked = new Promise<void>((resolve) => {
      this.#looks.set(id, resolve);
    });
    this.#server.look(this.connection, id);
    return looked;
  }

  /**
   * Gives the monitor the files of its image's bases as they are now, or none if they are not
   * known: then it asks again.
   */
  async giveBases(paths: string[]): Promise<void> {
    if (paths.length === 0) {
      this.#server.giveBases(this.connection, 0, paths);
      return;
    }
    await this.#requests.run(() =>
      this.#ask((id) => {
        this.#server.giveBases(this.connection, id, paths);
      }),
    );
  }

  /**
   * Tells the monitor that the clean store has what its image stands on, after the store has opened
   * that. No request waits for this.
   */
  async share(layer: { path: string; layer: number }, root: string): Promise<void> {
    const size = await new Promise<string>((resolve, reject) => {
      if (this.#gone !== null) {
        reject(this.#lost());
        return;
      }
      this.#opening = { resolve, reject };
      this.#server.share(this.connection, layer.path, layer.layer, root);
    });
    await this.request('store', { text: size });
  }

  /** Answers its 'fetch'. */
  fetched(id: number, why: string): void {
    this.#server.fetched(this.connection, id, why);
  }

  #send(name: RequestName, { text = '', value = 0, limit }: RequestOptions): Promise<string> {
    return this.#ask((id) => {
      this.#server.request(this.connection, id, name, value, text);
    }, limit);
  }

  async #ask(say: (id: number) => void, limit?: number): Promise<string> {
    await this.#ready;
    if (this.#gone !== null) {
      throw this.#lost();
    }
    const id = (this.#lastId += 1);
    const timer =
      limit === undefined
        ? undefined
        : setTimeout(() => {
            this.#server.close(this.connection, `it did not answer within ${limit / 1000} s`);
          }, limit);
    try {
      return await new Promise<string>((resolve, reject) => {
        this.#waiting = { id, resolve, reject };
        say(id);
      });
    } finally {
      clearTimeout(timer);
    }
  }

  /**
   * The monitor's own report, or null if it is busy or gone: `status` must never hang because of a
   * monitor.
   */
  report(): Promise<string | null> {
    const now = Date.now();
    let report = this.#report;
    if (!report || (report.answered !== null && now - report.answered > FRESH)) {
      const answer = this.request('status').catch(() => null);
      const asked: Report = { answer, asked: now, answered: null };
      void answer.then(() => {
        asked.answered = Date.now();
      });
      this.#report = asked;
      report = asked;
    }
    return report.answered === null
      ? Promise.race([report.answer, after(Math.max(0, report.asked + PATIENCE - now))])
      : report.answer;
  }

  /** Handles an event that the server reports for this connection. */
  heard(event: Exclude<AttachEvent, { kind: 'attach' | 'resume' | 'want' | 'fetch' }>): void {
    switch (event.kind) {
      case 'handed over':
        if (event.ok) {
          this.#becomeReady();
        }
        settle(this.#handingOver, event.ok, refused(event.errno, event.text));
        this.#handingOver = null;
        return;
      case 'answer':
        if (this.#waiting?.id === event.id) {
          const waiting = this.#waiting;
          this.#waiting = null;
          settle(waiting, event.ok, this.#failure(event), event.text);
        }
        return;
      case 'opened':
        settle(this.#opening, event.ok, refused(event.errno, event.text), event.text);
        this.#opening = null;
        return;
      case 'looked':
        this.#looks.get(event.id)?.();
        this.#looks.delete(event.id);
        return;
      case 'release':
        return; // the server answers the request in progress
      case 'closed':
        this.#gone =
          event.text === '' ? 'the process has ended, or has released the image' : event.text;
        for (const waiting of [this.#handingOver, this.#waiting, this.#opening]) {
          waiting?.reject(this.#lost());
        }
        this.#handingOver = this.#waiting = this.#opening = null;
        this.#becomeReady();
        for (const resolve of this.#looks.values()) {
          resolve();
        }
        this.#looks.clear();
    }
  }

  #failure({ errno, text }: { errno: number; text: string }): PcowError {
    const sentence = `${this.process}: ${text}`;
    return errno === ESHUTDOWN ? new MonitorGone('PCOW_IO', sentence) : refused(errno, sentence);
  }

  #lost(): PcowError {
    return new MonitorGone(
      'PCOW_IO',
      `the connection to ${this.process} was lost: ${this.#gone ?? ''}`,
    );
  }
}

/** A monitor answers with an errno alone, which stands for the code of its error. */
function refused(errno: number, sentence: string): PcowError {
  return new PcowError(codeOfAnswer(errno), sentence, { errno });
}

function settle(waiting: Waiting | null, ok: boolean, failure: PcowError, answer = ''): void {
  if (ok) {
    waiting?.resolve(answer);
  } else {
    waiting?.reject(failure);
  }
}

function after(milliseconds: number): Promise<null> {
  return new Promise((resolve) => {
    setTimeout(resolve, milliseconds, null).unref();
  });
}
