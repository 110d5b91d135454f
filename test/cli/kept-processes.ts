/**
 * Commands in processes that are kept for the next ones (kept-process.ts): to start Node and to
 * load Pcow takes several times as long as most commands run. PCOW_LONG=1 starts a process for each
 * (npm run test:long).
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, rmSync } from 'node:fs';
import { mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { AT_LENGTH } from '../helpers/effort.js';
import type { Answer, Request } from './kept-process.js';
import type { Outcome } from './outcome.js';

/** What becomes another process, or leaves one behind, or waits for a signal. */
const ALONE = ['mount', 'run', 'top'];

const idle: ChildProcess[] = [];

export function mayShareProcess({ program, words }: Request): boolean {
  return !AT_LENGTH && program !== 'mount-fuse-pcow' && !ALONE.includes(words[0] ?? '');
}

/** Commands at the same time have a process each. */
export async function inKeptProcess(request: Request): Promise<Outcome> {
  const child = idle.pop() ?? (await keptProcess());
  child.channel?.ref();
  const over = new AbortController();
  const died = once(child, 'exit', { signal: over.signal }).then(([code, signal]: unknown[]) => {
    throw new Error(`the process of "${request.words.join(' ')}" ended: ${String(code ?? signal)}`);
  });
  died.catch(() => undefined);
  const answered = once(child, 'message', { signal: over.signal });
  answered.catch(() => undefined);
  child.send(request);
  const [{ outcome, stays }] = (await Promise.race([answered, died])) as [Answer];
  over.abort();
  child.channel?.unref();
  if (stays) idle.push(child);
  return outcome;
}

async function keptProcess(): Promise<ChildProcess> {
  const scratch = await mkdtemp(path.join(tmpdir(), 'pcow-said-'));
  const files = ['stdout', 'stderr'].map((name) => openSync(path.join(scratch, name), 'a+'));
  rmSync(scratch, { recursive: true });
  const child = fork(fileURLToPath(new URL('kept-process.js', import.meta.url)), [], {
    stdio: ['ignore', files[0], files[1], 'ipc'],
  });
  for (const file of files) closeSync(file);
  child.unref();
  return child;
}
