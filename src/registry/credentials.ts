/**
 * Credentials for registries, where docker, skopeo and podman keep them: in JSON files, and with
 * helper programs that these files name. Only what these programs can read is written.
 */
import { spawn } from 'node:child_process';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import path from 'node:path';
import { giveName, isMissing, PcowError, removeName } from '../engine/index.js';

export interface Credentials {
  username: string;
  /** The password; or, with an empty user name, an identity token. */
  secret: string;
}

/** The file as docker and skopeo write it; other fields are kept. */
interface AuthFile {
  auths?: Record<string, { auth?: string; identitytoken?: string }>;
  credHelpers?: Record<string, string>;
  credsStore?: string;
}

/** Milliseconds that a helper may take, because it may ask the user. */
const HELPER_LIMIT = 60_000;
const LONGEST_ANSWER = 1 << 20;

/** The files that are read, in this order: the first one that has the host counts. */
function files(): string[] {
  const {
    REGISTRY_AUTH_FILE: chosen,
    XDG_RUNTIME_DIR: runtime,
    XDG_CONFIG_HOME: config,
  } = process.env;
  if (chosen) return [chosen];
  const containers = path.join(
    config ?? path.join(homedir(), '.config'),
    'containers',
    'auth.json',
  );
  return [
    ...(runtime ? [path.join(runtime, 'containers', 'auth.json')] : []),
    containers,
    dockerFile(),
  ];
}

function dockerFile(): string {
  return path.join(process.env.DOCKER_CONFIG ?? path.join(homedir(), '.docker'), 'config.json');
}

/**
 * The credentials for a host; null: the user has not logged in. `repository`: skopeo may keep other
 * credentials for a part of a registry.
 */
export async function credentialsFor(
  host: string,
  repository: string,
): Promise<Credentials | null> {
  for (const file of files()) {
    const known = await readAuthFile(file);
    if (known === null) continue;
    const helper = known.credHelpers?.[host];
    const stored = helper === undefined ? storedIn(known, host, repository) : null;
    if (stored !== null) return stored;
    const program = helper ?? known.credsStore;
    const told =
      program === undefined ? null : await askHelper(program, keysOf(host).at(0) ?? host);
    if (told !== null) return told;
  }
  return null;
}

/** The names under which programs keep a host. Docker Hub has an old one. */
function keysOf(host: string): string[] {
  return host === 'docker.io' || host === 'registry-1.docker.io'
    ? ['https://index.docker.io/v1/', 'docker.io', 'index.docker.io']
    : [host, `https://${host}`, `https://${host}/v1/`, `https://${host}/v2/`, `http://${host}`];
}

function storedIn({ auths = {} }: AuthFile, host: string, repository: string): Credentials | null {
  const parts = repository.split('/');
  const narrow = parts.map((_, at) => [host, ...parts.slice(0, parts.length - at)].join('/'));
  for (const key of [...narrow, ...keysOf(host)]) {
    const found = Object.hasOwn(auths, key) ? auths[key] : undefined;
    if (typeof found?.identitytoken === 'string' && found.identitytoken !== '') {
      return { username: '', secret: found.identitytoken };
    }
    if (typeof found?.auth !== 'string' || found.auth === '') continue;
    const text = Buffer.from(found.auth, 'base64').toString('utf8');
    const colon = text.indexOf(':');
    if (colon > 0) return { username: text.slice(0, colon), secret: text.slice(colon + 1) };
  }
  return null;
}

/** null: there is no such file. */
async function readAuthFile(file: string): Promise<AuthFile | null> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    if (isMissing(error)) return null;
    throw error;
  }
  if (text.trim() === '') return {};
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === 'object' && value !== null) return value;
  } catch {
    // reported below
  }
  throw new PcowError(
    'PCOW_INVALID',
    `${file}, which has the credentials for registries, is not JSON`,
    {
      next: 'repair or remove it, then run pcow login again',
    },
  );
}

async function askHelper(name: string, host: string): Promise<Credentials | null> {
  const { code, output } = await runHelper(name, 'get', host);
  if (code !== 0) {
    if (/not found/i.test(output)) return null;
    throw helperFailed(name, output);
  }
  try {
    const { Username, Secret } = JSON.parse(output) as { Username?: unknown; Secret?: unknown };
    if (typeof Username === 'string' && typeof Secret === 'string') {
      return { username: Username === '<token>' ? '' : Username, secret: Secret };
    }
  } catch {
    // reported below: what a helper says may contain a secret
  }
  throw helperFailed(name, 'its answer is not in the format of a helper');
}

function helperFailed(name: string, why: string): PcowError {
  return new PcowError(
    'PCOW_PERMISSION',
    `docker-credential-${name} gave no credentials: ${why.trim().slice(0, 200)}`,
    {
      next: null,
    },
  );
}

async function runHelper(
  name: string,
  verb: string,
  input: string,
): Promise<{ code: number | null; output: string }> {
  if (!/^[A-Za-z0-9_.-]+$/.test(name)) throw helperFailed(name, 'this is not the name of a helper');
  return new Promise((resolve, reject) => {
    const child = spawn(`docker-credential-${name}`, [verb], {
      stdio: ['pipe', 'pipe', 'inherit'],
      timeout: HELPER_LIMIT,
    });
    let output = '';
    child.stdout.on('data', (chunk: Buffer) => {
      output += chunk.toString('utf8');
      if (output.length > LONGEST_ANSWER) child.kill();
    });
    child.on('error', (error) => {
      reject(helperFailed(name, error.message));
    });
    child.on('close', (code) => {
      resolve({ code, output });
    });
    child.stdin.on('error', () => undefined); // the helper may not read it
    child.stdin.end(input);
  });
}

/** The file that `pcow login` writes. All of these programs read it. */
function fileToWrite(): string {
  return process.env.REGISTRY_AUTH_FILE ?? dockerFile();
}

/** Returns where they are stored, for messages. */
export async function storeCredentials(host: string, credentials: Credentials): Promise<string> {
  const file = fileToWrite();
  const known = (await readAuthFile(file)) ?? {};
  const [key = host] = keysOf(host);
  const helper = known.credHelpers?.[host] ?? known.credsStore;
  if (helper !== undefined) {
    const { username, secret } = credentials;
    const { code, output } = await runHelper(
      helper,
      'store',
      JSON.stringify({ ServerURL: key, Username: username, Secret: secret }),
    );
    if (code !== 0) throw helperFailed(helper, output);
    return `docker-credential-${helper}`;
  }
  const auth = Buffer.from(`${credentials.username}:${credentials.secret}`).toString('base64');
  await writeAuthFile(file, { ...known, auths: { ...known.auths, [key]: { auth } } });
  return file;
}

/** Returns whether there were any. */
export async function removeCredentials(host: string): Promise<boolean> {
  const file = fileToWrite();
  const known = await readAuthFile(file);
  if (known === null) return false;
  const keys = keysOf(host);
  const helper = known.credHelpers?.[host] ?? known.credsStore;
  let removed = false;
  if (helper !== undefined)
    removed = (await runHelper(helper, 'erase', keys[0] ?? host)).code === 0;
  const auths = Object.entries(known.auths ?? {});
  const rest = auths.filter(([key]) => !keys.includes(key));
  if (rest.length === auths.length) return removed;
  await writeAuthFile(file, { ...known, auths: Object.fromEntries(rest) });
  return true;
}

/** Only the owner may read the file. It is replaced as a whole. */
async function writeAuthFile(file: string, content: AuthFile): Promise<void> {
  await mkdir(path.dirname(file), { recursive: true, mode: 0o700 });
  const draft = `${file}.${process.pid}.new`;
  try {
    await writeFile(draft, `${JSON.stringify(content, null, '\t')}\n`, {
      mode: 0o600,
      flag: 'wx',
      flush: true,
    });
    await giveName(draft, file, true);
  } catch (error) {
    await removeName(draft).catch(() => undefined);
    throw error;
  }
}
