import { createInterface } from 'node:readline/promises';
import { Writable } from 'node:stream';
import type { Command } from 'commander';
import { loginToRegistry } from '../../src/registry/index.js';
import { parseHost } from '../../src/registry/reference.js';
import { textOf } from '../input-text.js';
import { Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { say } from '../output/stdout.js';
import { addRegistryOptions, httpOf, type RegistryFlags } from '../registry-options.js';

interface Options extends RegistryFlags {
  username?: string;
  passwordStdin?: boolean;
}

export function addLogin(program: Command): void {
  const command = program
    .command('login')
    .summary('keep the credentials for a registry')
    .description(
      'Has a registry check a user name and a password, and keeps them as “docker login” does.',
    )
    .argument('<host>', 'HOST or HOST:PORT of the registry')
    .option('-u, --username <name>', 'the user; default: asks on the terminal')
    .option('--password-stdin', 'read the password, or a token, from standard input');
  addRegistryOptions(command).action(login);
  addNotes(command, {
    text: [
      'They are kept in $REGISTRY_AUTH_FILE, or in ~/.docker/config.json (of $DOCKER_CONFIG), or by the helper ' +
        'that this file names. docker, podman and skopeo use the same files: Pcow uses the credentials that they keep.',
    ],
    examples: [
      { command: 'pcow login registry.example.org', does: 'asks for user and password' },
      {
        command: 'pcow login -u me --password-stdin registry.example.org < token',
        does: 'for scripts',
      },
    ],
  });
}

async function login(given: string, options: Options): Promise<void> {
  const host = parseHost(given);
  const username = options.username ?? (await ask('Username: ', true));
  const password =
    options.passwordStdin === true ? (await textOf('-')).trimEnd() : await ask('Password: ', false);
  if (username === '' || password === '') {
    throw new Failure(
      'PCOW_USAGE',
      'a user name and a password are needed',
      `pcow login -u USER --password-stdin HOST`,
    );
  }
  const place = await loginToRegistry(host, { username, password }, httpOf(options));
  say(`logged in to ${host}: kept in ${place}`);
}

/** Only on a terminal. A password is not shown. */
async function ask(question: string, shown: boolean): Promise<string> {
  if (!process.stdin.isTTY) {
    throw new Failure(
      'PCOW_USAGE',
      'there is no terminal on which to ask for the user name and the password',
      'pcow login -u USER --password-stdin HOST',
    );
  }
  process.stderr.write(question);
  const nowhere = new Writable({
    write: (_chunk, _encoding, done) => {
      done();
    },
  });
  const terminal = createInterface({
    input: process.stdin,
    output: shown ? process.stderr : nowhere,
    terminal: true,
  });
  try {
    return await terminal.question('');
  } finally {
    terminal.close();
    if (!shown) process.stderr.write('\n');
  }
}
