#!/usr/bin/env node
/** The program at its former path, for existing scripts; pcow.cjs starts faster. */
import './pcow.cjs';
